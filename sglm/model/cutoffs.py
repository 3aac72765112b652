"""Where the clusters of an adaptive softmax begin, chosen from the counts of the words.

Grave et al. 2017, section 4.2, minimise a model of the time. A rule is enough: by the rows that are
multiplied for a token, the head's and those of the tails weighted by how often they are needed,
these places are within a fifth of the cheapest two for the words of Penn Treebank and WikiText-2.
Their head is larger, which can only predict better.

Shapes: V vocabulary.
"""

import numpy as np
import numpy.typing as npt

# Of the text, what the words of the head make up, and what they and the first tail's do together.
SHARES = (0.8, 0.95)


def chosen_cutoffs(counts_V: npt.NDArray[np.int64]) -> tuple[int, ...]:
    """How many words, by count, come before each tail; empty where the vocabulary is too small.

    Args:
        counts_V: how often each token id occurs.
    """
    # One more of each, as for the biases (`LSTMLanguageModel.start_from_unigram`).
    cumulated_V = np.cumsum(np.sort(counts_V)[::-1] + 1)
    cutoffs = tuple(
        1 + int(np.searchsorted(cumulated_V, share * cumulated_V[-1])) for share in SHARES
    )
    bounds = (0, *cutoffs, len(counts_V))
    return cutoffs if sorted(set(bounds)) == list(bounds) else ()
