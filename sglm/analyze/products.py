"""Unbiased inner products of expectations, computed from noisy estimates of them.

The inner product of two means over the same text includes the noise that they share, and the
squared length of a mean includes its own noise. Independent estimates x_i, y_i, i = 1 … M of two
expectations avoid both: the mean of ⟨x_i, y_j⟩ over all pairs i ≠ j is ⟨E x, E y⟩ in expectation.
(It is a U-statistic, Hoeffding 1948. It can be negative even where it estimates a square.)

Intervals come from the bootstrap (Efron 1979): the M estimates are drawn with replacement, and
pairs of an estimate with itself, which would include its noise, are left out.

Shapes: M independent estimates, K kinds of vectors, P entries of a vector, W drawings.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
DRAWINGS = 1000
_COLUMNS_AT_ONCE = 2**16


def gram(vectors_MKP: Tensor) -> Array:
    """Returns all inner products, `(M, K, M, K)`, in float64; bounds the columns held at once."""
    estimates, kinds, _ = vectors_MKP.shape
    total = torch.zeros(estimates * kinds, estimates * kinds, dtype=torch.float64)
    for piece in torch.split(vectors_MKP.flatten(0, 1), _COLUMNS_AT_ONCE, dim=1):
        piece = piece.double()
        total += piece @ piece.T
    return total.view(estimates, kinds, estimates, kinds).numpy()


def drawings(estimates: int, count: int = DRAWINGS, *, seed: int = 0) -> Array:
    """Returns how often each estimate is drawn, `(1 + W, M)`; at first, each exactly once."""
    drawn = np.random.default_rng(seed).multinomial(
        estimates, np.full(estimates, 1 / estimates), size=count
    )
    return np.concatenate((np.ones((1, estimates)), drawn))


def products_of_means(gram_MKMK: Array, drawings_WM: Array) -> Array:
    """Estimates ⟨E x_k, E x_l⟩ without bias for all kinds k, l and each drawing: `(W, K, K)`.

    A drawing of one estimate alone has no pairs, and gives NaN.
    """
    among = np.einsum("ikjl,wi,wj->wkl", gram_MKMK, drawings_WM, drawings_WM, optimize=True)
    with_itself = np.einsum("ikil,wi->wkl", gram_MKMK, drawings_WM**2, optimize=True)
    pairs = drawings_WM.sum(1) ** 2 - (drawings_WM**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = (among - with_itself) / pairs[:, None, None]
    return found


def mean_pairwise_cosine(gram_MM: Array, drawings_WM: Array) -> Array:
    """Returns the mean cosine between two different estimates in each drawing, `(W,)`."""
    lengths_M = np.sqrt(np.diagonal(gram_MM))
    cosines_MM = gram_MM / np.outer(lengths_M, lengths_M)
    return products_of_means(cosines_MM[:, None, :, None], drawings_WM)[:, 0, 0]


def cosine(both: Array, left: Array, right: Array) -> Array:
    """Returns cosines from ⟨x, y⟩, ⟨x, x⟩ and ⟨y, y⟩; NaN where a square is not positive."""
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.where((left > 0) & (right > 0), left * right, np.nan)
        found: Array = both / np.sqrt(squares)
    return found


def interval(drawn_W: Array) -> list[float]:
    """Returns `[value, low, high]`: the first drawing's value and the 95 % interval of the others.

    The interval is NaN if fewer than half of the other values are finite.
    """
    others = drawn_W[1:][np.isfinite(drawn_W[1:])]
    if len(others) < (len(drawn_W) - 1) / 2 or not len(others):
        return [float(drawn_W[0]), math.nan, math.nan]
    low, high = np.percentile(others, [2.5, 97.5])
    return [float(drawn_W[0]), float(low), float(high)]


def worth(errors_RW: Array, reaches: list[int], error_W: Array) -> Array:
    """Returns the reach of an exact gradient that has the same error as a given gradient.

    Between the reaches that were measured, errors are interpolated linearly.

    Args:
        errors_RW: Errors of the exact gradients of each reach, which should fall with the reach.
        reaches: The R reaches, ascending.
        error_W: Errors of the gradient to be valued.

    Returns:
        `(W,)`: The first crossing; the first reach if the error is at least as large as there, the
        last reach if it is smaller than at all; NaN if a value is not finite.
    """
    pairs = zip(errors_RW.T, error_W.tolist(), strict=True)
    return np.array([_crossing(errors_R, reaches, error) for errors_R, error in pairs])


def _crossing(errors_R: Array, reaches: list[int], error: float) -> float:
    if not math.isfinite(error) or not np.isfinite(errors_R).all():
        return math.nan
    if error >= errors_R[0]:
        return float(reaches[0])
    for index in range(1, len(reaches)):
        before, after = errors_R[index - 1], errors_R[index]
        if after <= error:
            share = 0.0 if before == after else (before - error) / (before - after)
            return float(reaches[index - 1] + share * (reaches[index] - reaches[index - 1]))
    return float(reaches[-1])
