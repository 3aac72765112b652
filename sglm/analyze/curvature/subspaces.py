"""Overlaps of two spaces, and the share of a vector that is an outer product.

Shapes: K vectors of P numbers each.
"""

import base64
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


# Sizes, besides the number of outputs, of the spaces of outer products that are examined.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600)


def sizes_up_to(largest: int, outputs: int) -> list[int]:
    """Returns `SIZES` and `outputs` in ascending order, without those above `largest`."""
    return sorted(size for size in {*SIZES, outputs} if size <= largest)


class Eigenpairs(NamedTuple):
    """Eigenvalues, the largest first, and their orthonormal eigenvectors as rows."""

    values_K: Array
    vectors_KP: Array


def overlaps(one_KP: Array, other_KP: Array) -> list[float]:
    """Computes, for k = 1 … K, the overlap of the spaces spanned by each side's first k vectors.

    The overlap is `‖U Vᵀ‖²_F / k` for orthonormal rows: the mean squared length of a unit vector of
    one space projected on the other (Wu et al. 2020). It is 1 for identical spaces and on average
    k/P for unrelated ones.
    """
    return cumulative((one_KP @ other_KP.T) ** 2)


def cumulative(squares_KK: Array) -> list[float]:
    """Computes the same overlaps from the squared inner products of the vectors."""
    sums = squares_KK.cumsum(0).cumsum(1).diagonal()
    return [float(total / (k + 1)) for k, total in enumerate(sums)]


def rank_one_shares(vectors_KP: Array, shape: tuple[int, int]) -> list[float]:
    """Computes the share of each vector's squared length in its best rank-1 approximation.

    Each vector is reshaped like its weight matrix; the share is `σ₁² / ‖·‖²_F`, and 1 for an outer
    product.

    Args:
        vectors_KP: Vectors of a matrix's weights, row by row.
        shape: The matrix's shape.
    """
    singular = np.linalg.svd(vectors_KP.reshape(-1, *shape), compute_uv=False)
    return [float(each[0] ** 2 / (each**2).sum()) for each in singular]


def random_rank_one_share(shape: tuple[int, int]) -> float:
    """Returns the approximate share of a Gaussian vector, whose σ₁ is about √rows + √columns."""
    rows, columns = shape
    return float((rows**0.5 + columns**0.5) ** 2 / (rows * columns))


def packed(values: Array) -> dict[str, Any]:
    """Packs numbers compactly for JSON: scaled by the largest, as float16, in base64.

    The direction of an eigenvector is accurate to 3e-4.
    """
    scale = float(np.abs(values).max(initial=0)) or 1.0
    data = (values / scale).astype("<f2").tobytes()
    return {"shape": list(values.shape), "scale": scale, "f2": base64.b64encode(data).decode()}


def unpacked(content: dict[str, Any]) -> Array:
    """Returns the numbers that `packed` packed, as float32."""
    values = np.frombuffer(base64.b64decode(content["f2"]), "<f2").astype(np.float32)
    return values.reshape(content["shape"]) * np.float32(content["scale"])
