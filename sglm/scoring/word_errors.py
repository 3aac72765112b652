"""Word errors against a reference, counted by the package jiwer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """Of some hypotheses: substitutions, deletions and insertions in each, and the number of words
    in each one's reference."""

    errors: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


def count_word_errors(hypotheses: Sequence[str], references: Sequence[str]) -> WordErrors:
    """The errors of each hypothesis; words are what spaces separate, compared as they are.

    Raises:
        InputError: jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError:
        raise InputError(
            "word error rates need the package jiwer: pip install 'sglm[kenlm]'"
        ) from None
    counted = jiwer.process_words(list(references), list(hypotheses))
    errors = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in chunks
            if chunk.type != "equal"
        )
        for chunks in counted.alignments
    ]
    words = [len(reference) for reference in counted.references]
    return WordErrors(errors=np.array(errors), words=np.array(words))
