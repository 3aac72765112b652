"""The measurements on one weight matrix of one model."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglm.analyze.curvature.kronecker import (
    Factorization,
    Factors,
    captured_shares,
    factorize,
    product_spectrum,
    random_cotangents,
)
from sglm.analyze.curvature.spectrum import gauss_newton, hessian, top_eigenpairs
from sglm.analyze.curvature.subspaces import (
    Array,
    Eigenpairs,
    overlaps,
    packed,
    rank_one_shares,
    sizes_up_to,
)
from sglm.analyze.curvature.windows import WindowLoss

EIGENPAIRS = 10
MATRICES = ("weight_ih", "weight_hh")


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight matrix of a model: the layer's index, and `weight_ih` or `weight_hh`."""

    layer: int
    matrix: str

    @property
    def name(self) -> str:
        """The parameter's name in the model's file."""
        return f"layers.{self.layer}.{self.matrix}"

    @property
    def short(self) -> str:
        """The name for tables, such as `ih 0`."""
        return f"{self.matrix.removeprefix('weight_')} {self.layer}"


class WeightMeasurer:
    """Measures the weight matrices of one model; shared results are computed once per layer.

    Args:
        window_loss: The model's loss.
    """

    def __init__(self, window_loss: WindowLoss) -> None:
        self.window_loss = window_loss
        self._factorized: dict[int, dict[str, Factorization]] = {}

    def factorization(self, weight: Weight) -> Factorization:
        """Returns the factorization of one matrix, cached by layer."""
        if weight.layer not in self._factorized:
            self._factorized[weight.layer] = factorize(
                self.window_loss, random_cotangents(self.window_loss), layer=weight.layer
            )
        return self._factorized[weight.layer][weight.matrix]

    def measure(self, weight: Weight) -> dict[str, Any]:
        """Returns all measurements of one matrix as values that JSON can hold.

        `kept` holds the packed eigenvectors by which models are compared.
        """
        layer = self.window_loss.model.layers[weight.layer]
        parameter = getattr(layer, weight.matrix)
        shape = tuple(parameter.shape)
        pairs = {
            "hessian": top_eigenpairs(hessian(self.window_loss, parameter), EIGENPAIRS),
            "gauss_newton": top_eigenpairs(gauss_newton(self.window_loss, parameter), EIGENPAIRS),
        }
        factorization = self.factorization(weight)
        found: dict[str, Any] = {
            name: describe_eigenpairs(each, shape, factorization.mean_I)
            for name, each in pairs.items()
        }
        found["gauss_newton"]["trace"] = factorization.trace
        found["hessian_gauss_newton"] = overlaps(*(each.vectors_KP for each in pairs.values()))
        for name in ("expand", "reduce"):
            factors = getattr(factorization, name)
            product = product_spectrum(factors, EIGENPAIRS).eigenpairs()
            captured = captured_shares(factors, pairs["gauss_newton"].vectors_KP)
            sizes = sizes_up_to(len(captured), shape[0])
            found[name] = {
                "values": product.values_K.tolist(),
                "sizes": sizes,
                "captured": [float(captured[size - 1]) for size in sizes],
            } | {of: overlaps(product.vectors_KP, each.vectors_KP) for of, each in pairs.items()}
        found["inputs"] = mean_share(factorization.expand, factorization.mean_I)
        found["kept"] = {name: packed(each.vectors_KP) for name, each in pairs.items()} | {
            "outputs": packed(_scaled_eigenvectors(factorization.expand.outputs_OO)),
            "inputs": packed(_scaled_eigenvectors(factorization.expand.inputs_II)),
        }
        found["shape"], found["nll"] = list(shape), self.window_loss.loss.nll
        return found


def describe_eigenpairs(pairs: Eigenpairs, shape: tuple[int, int], mean_I: Array) -> dict[str, Any]:
    """Describes the eigenpairs of a curvature matrix in one of an LSTM's weight matrices.

    Args:
        pairs: The eigenpairs, weights row by row.
        shape: The shape `(4H, I)` of the weight matrix.
        mean_I: The mean input of the weight matrix.

    Returns:
        `values`: the eigenvalues; `rank_one`: see `rank_one_shares`; `along_mean`: the share of
        each vector's squared length that lies along the mean input, `‖Mat(v) x̂‖²`; `gates`: the
        mean share of the vectors' squared length in each gate: input, forget, cell, output.
    """
    matrices_KOI = pairs.vectors_KP.reshape(-1, *shape)
    direction_I = mean_I / np.linalg.norm(mean_I)
    by_gate = (matrices_KOI**2).reshape(len(matrices_KOI), 4, -1).sum(-1)
    return {
        "values": pairs.values_K.tolist(),
        "rank_one": rank_one_shares(pairs.vectors_KP, shape),
        "along_mean": ((matrices_KOI @ direction_I) ** 2).sum(-1).tolist(),
        "gates": by_gate.mean(0).tolist(),
    }


def mean_share(factors: Factors, mean_I: Array) -> dict[str, float]:
    """Computes how much of the inputs' autocorrelation E[xxᵀ] their mean accounts for.

    Returns:
        `mean_share`: the mean's share of the trace, `‖E x‖² / E‖x‖²`; `first_share`: that of the
        top eigenvector; `first_along_mean`: the squared cosine of the mean and that eigenvector.
    """
    values, vectors = np.linalg.eigh(factors.inputs_II)
    total = float(values.sum())
    squared = float(mean_I @ mean_I)
    return {
        "mean_share": squared / total,
        "first_share": float(values[-1]) / total,
        "first_along_mean": float(vectors[:, -1] @ mean_I) ** 2 / squared,
    }


def _scaled_eigenvectors(matrix: Array) -> Array:
    """Returns rows whose outer products with themselves add up to the matrix, longest first."""
    values, vectors = np.linalg.eigh(matrix)
    scaled: Array = (vectors * np.sqrt(values.clip(0))).T[::-1]
    return scaled
