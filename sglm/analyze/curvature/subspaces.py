"""How much two spaces have in common, and how much a vector is an outer product.

Shapes: K vectors, P numbers of each.
"""

import base64
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


# Sizes of spaces of outer products that are looked at, besides the number of outputs.
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 400, 800, 1600)


def sizes_up_to(largest: int, outputs: int) -> list[int]:
    """Those of `SIZES` and `outputs` that are possible, in order."""
    return sorted(size for size in {*SIZES, outputs} if size <= largest)


class Eigenpairs(NamedTuple):
    """Eigenvalues, the largest first, and their eigenvectors as rows, orthonormal."""

    values_K: Array
    vectors_KP: Array


def overlaps(one_KP: Array, other_KP: Array) -> list[float]:
    """For k = 1 … K: the overlap of the spaces that the first k vectors of each span.

    `‖U Vᵀ‖²_F / k` for orthonormal rows: the mean squared length of a unit vector of one space that
    is projected on the other (Wu et al. 2020). 1: the same; k/P on average: unrelated.
    """
    return cumulative((one_KP @ other_KP.T) ** 2)


def cumulative(squares_KK: Array) -> list[float]:
    """The same from the squared inner products of the vectors."""
    sums = squares_KK.cumsum(0).cumsum(1).diagonal()
    return [float(total / (k + 1)) for k, total in enumerate(sums)]


def rank_one_shares(vectors_KP: Array, shape: tuple[int, int]) -> list[float]:
    """The largest share of each vector's squared length that an outer product has, once it is
    reshaped like its weight matrix: `σ₁² / ‖·‖²_F`. 1: it is an outer product.

    Args:
        vectors_KP: of a matrix's weights, row by row.
        shape: of the matrix.
    """
    singular = np.linalg.svd(vectors_KP.reshape(-1, *shape), compute_uv=False)
    return [float(each[0] ** 2 / (each**2).sum()) for each in singular]


def random_rank_one_share(shape: tuple[int, int]) -> float:
    """The same of a random vector, about: its largest singular value is √rows + √columns."""
    rows, columns = shape
    return float((rows**0.5 + columns**0.5) ** 2 / (rows * columns))


def packed(values: Array) -> dict[str, Any]:
    """Numbers as JSON can hold them in little space: base64 of float16 of what they are, scaled.

    An eigenvector's direction is kept to 3e-4.
    """
    scale = float(np.abs(values).max(initial=0)) or 1.0
    data = (values / scale).astype("<f2").tobytes()
    return {"shape": list(values.shape), "scale": scale, "f2": base64.b64encode(data).decode()}


def unpacked(content: dict[str, Any]) -> Array:
    """What was `packed`, as float32."""
    values = np.frombuffer(base64.b64decode(content["f2"]), "<f2").astype(np.float32)
    return values.reshape(content["shape"]) * np.float32(content["scale"])
