"""What the curvature of several models has in common."""

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
    """Two models, by name; whether both began with the same weights."""

    one: str
    other: str
    same_seed: bool


def pairs_of(seeds: Mapping[str, int]) -> list[Pair]:
    """Every two of the models whose seeds are given."""
    return [Pair(one, other, seeds[one] == seeds[other]) for one, other in combinations(seeds, 2)]


def compare(kept: Mapping[str, Mapping[str, Any]], pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """The overlaps of each pair's top eigenspaces.

    Args:
        kept: of each model, what `WeightMeasurer.measure` kept of one weight matrix.
        pairs: of models.

    Returns:
        For each pair its names, `same_seed`, `hessian` and `gauss_newton` for k = 1, 2, …, and
        `kronecker`: those of the factorizations (expand), for k in `sizes`.
    """
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
    """For outer products inner products are products of those of the two sides."""
    squares = (one.outputs_KO @ other.outputs_KO.T) ** 2 * (one.inputs_KI @ other.inputs_KI.T) ** 2
    every = cumulative(squares)
    sizes = sizes_up_to(len(every), one.outputs_KO.shape[1])
    return {"sizes": sizes, "kronecker": [every[size - 1] for size in sizes]}
