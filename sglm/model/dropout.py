"""Dropout for recurrent networks: one mask for a whole window, not one for each step.

Shapes: T time, B lanes, H features, V vocabulary. Every function is the identity at rate 0, and
draws from torch's global generator, so that a checkpoint of that generator resumes it exactly.
"""

from torch import Tensor

from sglm.runtime.ranks import ALONE, Ranks


def locked_mask(inputs_TBH: Tensor, rate: float, ranks: Ranks = ALONE) -> Tensor | None:
    """What `locked_dropout` multiplies every step by: `(B, H)`, or None at rate 0.

    Every rank draws the masks of all lanes and takes its own.
    """
    if rate == 0:
        return None
    _, lanes, features = inputs_TBH.shape
    mask_BH = inputs_TBH.new_empty(lanes * ranks.count, features)
    return ranks.own(mask_BH.bernoulli_(1 - rate).div_(1 - rate))


def locked_dropout(inputs_TBH: Tensor, rate: float, ranks: Ranks = ALONE) -> Tensor:
    """Variational dropout: one mask for all steps of the window (Gal & Ghahramani 2016, sec. 4)."""
    mask_BH = locked_mask(inputs_TBH, rate, ranks)
    return inputs_TBH if mask_BH is None else inputs_TBH * mask_BH


def word_dropout(embedded: Tensor, ids: Tensor, *, words: int, rate: float) -> Tensor:
    """Drops whole words for the length of the window (Gal & Ghahramani 2016, sec. 4.2).

    Args:
        embedded: `(…, E)`, the vectors of the words `ids`, `(…)`.
        words: V.
        rate: the probability of dropping a word.
    """
    if rate == 0:
        return embedded
    mask_V1 = embedded.new_empty(words, 1).bernoulli_(1 - rate).div_(1 - rate)
    return embedded * mask_V1[ids]


def weight_dropout(weight: Tensor, rate: float) -> Tensor:
    """DropConnect on a recurrent matrix, one mask a window (Merity et al. 2018, sec. 2).

    Returns a new tensor and does not change the parameter. The original code registered the masked
    matrix in the parameter's place, which fails on torch ≥ 2.
    """
    if rate == 0:
        return weight
    return weight * weight.new_empty(weight.shape).bernoulli_(1 - rate).div_(1 - rate)
