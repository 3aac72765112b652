"""The cutoffs of an adaptive softmax, where its tails begin, chosen from word counts.

Grave et al. 2017, section 4.2, minimise a model of the computing time. A rule suffices: in terms of
the rows that are multiplied per token (the head's, and each tail's weighted by how often the tail
is needed), these cutoffs are within a fifth of the cheapest two for the words of Penn Treebank and
WikiText-2. Their head is larger, which can only improve predictions.

Shapes: V vocabulary.
"""

import numpy as np
import numpy.typing as npt

# Shares of the text made up by the words of the head, and by those of head and first tail together.
SHARES = (0.8, 0.95)


def chosen_cutoffs(counts_V: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """Returns how many words, by count, precede each tail; empty if the vocabulary is too small.

    Args:
        counts_V: Number of occurrences of each token id.
    """
    # Add-one smoothing, as for the biases (`LSTMLanguageModel.start_from_unigram`).
    cumulated_V = np.cumsum(np.sort(counts_V)[::-1] + 1)
    cutoffs = tuple(
        1 + int(np.searchsorted(cumulated_V, share * cumulated_V[-1])) for share in SHARES
    )
    bounds = (0, *cutoffs, len(counts_V))
    return cutoffs if sorted(set(bounds)) == list(bounds) else ()
