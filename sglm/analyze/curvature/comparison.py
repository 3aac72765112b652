"""Comparison of the curvature of several models, pair by pair."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from sglm.analyze.curvature.kronecker import Factors, ProductSpectrum, product_spectrum
from sglm.analyze.curvature.subspaces import (
    SIZES,
    Array,
    cumulative,
    overlaps,
    sizes_up_to,
    unpacked,
)


class Pair(NamedTuple):
    """Two models by name, and whether their runs began with the same weights."""

    one: str
    other: str
    same_seed: bool


def pairs_of(seeds: Mapping[str, int]) -> list[Pair]:
    """Returns all pairs of the models, whose seeds are given by name."""
    return [Pair(one, other, seeds[one] == seeds[other]) for one, other in combinations(seeds, 2)]


def compare(kept: Mapping[str, Mapping[str, Any]], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Computes the overlaps of each pair's top eigenspaces in one weight matrix.

    Args:
        kept: The value `kept` of `WeightMeasurer.measure`, by model.
        pairs: The pairs of models.

    Returns:
        For each pair the names `one` and `other`; `same_seed`; `hessian` and `gauss_newton`: the
        overlaps of the top k eigenvectors for k = 1, 2, …; `kronecker`: the overlaps of the top k
        eigenvectors of the two Kronecker products (expand), for each k in `sizes`.
    """
    if not pairs:
        return []
    spaces = {
        name: {kind: unpacked(each[kind]) for kind in ("hessian", "gauss_newton")}
        for name, each in kept.items()
    }
    products = {name: _product(each) for name, each in kept.items()}
    return [
        pair._asdict()
        | {
            kind: overlaps(spaces[pair.one][kind], spaces[pair.other][kind])
            for kind in ("hessian", "gauss_newton")
        }
        | _product_overlaps(products[pair.one], products[pair.other])
        for pair in pairs
    ]


def _product(kept: Mapping[str, Any]) -> ProductSpectrum:
    outputs, inputs = (_rebuilt(unpacked(kept[name])) for name in ("outputs", "inputs"))
    largest = min(max(SIZES), len(outputs) * len(inputs))
    return product_spectrum(Factors(outputs_OO=outputs, inputs_II=inputs), largest)


def _rebuilt(rows: Array) -> Array:
    matrix: Array = rows.T.astype(np.float64) @ rows
    return matrix


def _product_overlaps(one: ProductSpectrum, other: ProductSpectrum) -> dict[str, Any]:
    """Returns `sizes` and `kronecker`, without writing the eigenvectors out.

    The inner product of two outer products is the product of the inner products of their factors.
    """
    squares = (one.outputs_KO @ other.outputs_KO.T) ** 2 * (one.inputs_KI @ other.inputs_KI.T) ** 2
    every = cumulative(squares)
    sizes = sizes_up_to(len(every), one.outputs_KO.shape[1])
    return {"sizes": sizes, "kronecker": [every[size - 1] for size in sizes]}
