"""Dropout for recurrent networks: one mask for a whole window, not one for each step.

Every function is the identity at rate 0. Masks are drawn from torch's global generator, so that a
run that restores this generator continues exactly. Shapes: T time, B lanes, H features, V
vocabulary, E embedding.
"""

from torch import Tensor

from sglm.runtime.ranks import ALONE, Ranks


def locked_mask(inputs_TBH: Tensor, rate: float, ranks: Ranks = ALONE) -> Tensor | None:
    """Returns the mask by which `locked_dropout` multiplies every step, `(B, H)`; None at rate 0.

    Every rank draws the masks of all lanes and takes those of its own.
    """
    if rate == 0:
        return None
    _, lanes, features = inputs_TBH.shape
    mask_BH = inputs_TBH.new_empty(lanes * ranks.count, features)
    return ranks.own(mask_BH.bernoulli_(1 - rate).div_(1 - rate))


def locked_dropout(inputs_TBH: Tensor, rate: float, ranks: Ranks = ALONE) -> Tensor:
    """Applies one mask to all steps (variational dropout: Gal & Ghahramani 2016, sec. 4)."""
    mask_BH = locked_mask(inputs_TBH, rate, ranks)
    return inputs_TBH if mask_BH is None else inputs_TBH * mask_BH


def word_dropout(embedded: Tensor, ids: Tensor, *, words: int, rate: float) -> Tensor:
    """Drops whole words for the length of the window (Gal & Ghahramani 2016, sec. 4.2).

    Args:
        embedded: Word vectors, `(…, E)`.
        ids: Token ids of these words, `(…)`.
        words: V.
        rate: Probability of dropping a word.
    """
    if rate == 0:
        return embedded
    mask_V1 = embedded.new_empty(words, 1).bernoulli_(1 - rate).div_(1 - rate)
    return embedded * mask_V1[ids]


def weight_dropout(weight: Tensor, rate: float) -> Tensor:
    """Applies DropConnect to a recurrent matrix, one mask per window (Merity et al. 2018, sec. 2).

    It does not change the parameter. (The original code registered the masked matrix in the
    parameter's place, which fails on torch ≥ 2.)
    """
    if rate == 0:
        return weight
    return weight * weight.new_empty(weight.shape).bernoulli_(1 - rate).div_(1 - rate)
