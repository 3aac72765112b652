"""Word errors of candidates against references, counted by the package jiwer.

Shapes: L lists, K candidates in each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglm.errors import InputError
from sglm.scoring.nbest import Counts, NBest


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """The word errors of all candidates.

    Attributes:
        errors_LK: The number of substitutions, deletions and insertions in each candidate.
        words: The number of words in all references.
    """

    errors_LK: Counts
    words: int

    def rate(self, chosen_L: Counts) -> float:
        """Returns the word error rate if one candidate of each list is chosen, given its index."""
        rows_L = np.arange(len(chosen_L))
        return float(self.errors_LK[rows_L, chosen_L].sum() / self.words)

    @property
    def oracle(self) -> float:
        """The lowest word error rate that any choice of candidates has."""
        return float(self.errors_LK.min(axis=1).sum() / self.words)


def count_word_errors(lists: NBest, references: Sequence[str]) -> WordErrors:
    """Counts the word errors of each candidate.

    Words are separated by white space and compared without any normalisation.

    Args:
        lists: The L lists of candidates.
        references: One reference for each list; at least one of them has words.

    Raises:
        InputError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise InputError(
            "word error rates need the package jiwer: pip install 'sglm[kenlm]'"
        ) from None
    shape = lists.scores_LK.shape
    repeated = [text for text in references for _ in range(shape[1])]
    counted = jiwer.process_words(repeated, lists.texts)
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in counted.alignments
    ]
    words = sum(map(len, counted.references[:: shape[1]]))
    return WordErrors(errors_LK=np.array(errors).reshape(shape), words=words)
