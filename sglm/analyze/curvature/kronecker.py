"""A weight matrix's Gauss–Newton matrix as a Kronecker product of two small matrices.

Let x_t be the input of the weight matrix at step t of a window and M_tu the Gauss–Newton matrix of
the window's loss between its outputs at steps t and u. With N windows and S = T·N tokens, the exact
matrix (weights row by row) is

    GN = 1/S Σ_n Σ_t Σ_u  M_tu ⊗ x_t x_uᵀ

because the same weights are used at every step. Two approximations factorize the sum (Martens &
Grosse 2015 for one step; Eschenhagen et al. 2023, sec. 3, for shared weights):

    expand:  (1/S Σ_n Σ_t M_tt) ⊗ (1/S Σ_n Σ_t x_t x_tᵀ)       terms with t ≠ u left out
    reduce:  (1/S Σ_n Σ_tu M_tu) ⊗ (1/N Σ_n x̄ x̄ᵀ), x̄ = 1/T Σ_t x_t     as if x_t were constant

For T = 1 both are what Wu et al. (2020) call the decoupling conjecture, E[M] ⊗ E[xxᵀ].

The matrices M are estimated from random vectors r whose second moment is the loss's Hessian in the
logits: δ_t = ∂⟨r, logits⟩/∂(gates at t) has E[δ_t δ_uᵀ] = M_tu.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.curvature.subspaces import Array, Eigenpairs
from sglm.analyze.curvature.windows import LayerTrace, WindowLoss

DRAWS = 30


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The two factors of the Kronecker product `outputs_OO ⊗ inputs_II`."""

    outputs_OO: Array
    inputs_II: Array


@dataclass(frozen=True, kw_only=True)
class Factorization:
    """Both factorizations of one weight matrix's Gauss–Newton matrix, and related numbers.

    Attributes:
        expand, reduce: The two factorizations.
        trace: The estimated trace of the exact Gauss–Newton matrix.
        mean_I: The mean input of the weight matrix.
    """

    expand: Factors
    reduce: Factors
    trace: float
    mean_I: Array


def random_cotangents(window_loss: WindowLoss, draws: int = DRAWS) -> Iterator[Tensor]:
    """Yields random gradients of the loss in the features, each `(T, N, H)`.

    Their second moment is the loss's Hessian in each token's features, and zero between tokens:
    each is Wᵀr with `r = √p∘ε − p⟨√p, ε⟩` for random signs ε, so that E[rrᵀ] = diag p − ppᵀ.
    """
    model, features_SH = window_loss.model, window_loss.loss.features_SH
    weight_VH, shape = model.output_weight.detach(), window_loss.embedded_TNI.shape[:2]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        p_SV = (features_SH @ weight_VH.t() + model.softmax_bias).softmax(-1)
        root_SV = p_SV.sqrt()
    for _ in range(draws):
        signs_SV = torch.empty_like(p_SV).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
        scaled_SV = signs_SV.mul_(root_SV)
        along_S = torch.einsum("sv,sv->s", scaled_SV, root_SV)
        yield (scaled_SV.addcmul_(p_SV, along_S[:, None], value=-1) @ weight_VH).view(*shape, -1)


def factorize(
    window_loss: WindowLoss, cotangents: Iterable[Tensor], *, layer: int
) -> dict[str, Factorization]:
    """Factorizes the Gauss–Newton matrices of a layer's `weight_ih` and `weight_hh`.

    Args:
        window_loss: The loss.
        cotangents: Random gradients in the features, each `(T, N, H)`; the estimates that they give
            are averaged.
        layer: The layer's index.

    Returns:
        The factorizations by the weight matrix's name.
    """
    features_TNH, traces = window_loss.features.trace(window_loss.embedded_TNI)
    trace: LayerTrace = traces[layer]
    inputs_of = {
        "weight_ih": trace.inputs_TNI.detach(),
        "weight_hh": trace.hidden_TNH.detach(),
    }
    units = trace.gates[0].shape[1]
    expand_OO = features_TNH.new_zeros(units, units)
    reduce_OO = torch.zeros_like(expand_OO)
    trace_of, draws = dict.fromkeys(inputs_of, 0.0), 0
    for cotangent_TNH in cotangents:
        deltas = torch.autograd.grad(
            features_TNH, trace.gates, cotangent_TNH, retain_graph=True, materialize_grads=True
        )
        delta_TNO = torch.stack(deltas)
        flat_SO, summed_NO = delta_TNO.flatten(0, 1), delta_TNO.sum(0)
        expand_OO.addmm_(flat_SO.t(), flat_SO)
        reduce_OO.addmm_(summed_NO.t(), summed_NO)
        for name, inputs_TNI in inputs_of.items():
            trace_of[name] += _squared_gradients(delta_TNO, inputs_TNI)
        draws += 1
    tokens = draws * features_TNH.shape[0] * features_TNH.shape[1]
    return {
        name: _factorization(
            inputs_TNI,
            expand_OO=_array(expand_OO / tokens),
            reduce_OO=_array(reduce_OO / tokens),
            trace=trace_of[name] / tokens,
        )
        for name, inputs_TNI in inputs_of.items()
    }


def _squared_gradients(delta_TNO: Tensor, inputs_TNI: Tensor) -> float:
    """Returns Σ_n ‖Σ_t δ_t x_tᵀ‖²_F = Σ_n Σ_tu (δ_t·δ_u)(x_t·x_u)."""
    outputs_NTT = torch.einsum("tno,uno->ntu", delta_TNO, delta_TNO)
    inputs_NTT = torch.einsum("tni,uni->ntu", inputs_TNI, inputs_TNI)
    return float((outputs_NTT * inputs_NTT).sum())


def _factorization(
    inputs_TNI: Tensor, *, expand_OO: Array, reduce_OO: Array, trace: float
) -> Factorization:
    flat_SI, mean_NI = inputs_TNI.flatten(0, 1), inputs_TNI.mean(0)
    return Factorization(
        expand=Factors(
            outputs_OO=expand_OO, inputs_II=_array(flat_SI.t() @ flat_SI / len(flat_SI))
        ),
        reduce=Factors(
            outputs_OO=reduce_OO, inputs_II=_array(mean_NI.t() @ mean_NI / len(mean_NI))
        ),
        trace=trace,
        mean_I=_array(flat_SI.mean(0)),
    )


def _array(tensor: Tensor) -> Array:
    array: np.ndarray[Any, np.dtype[np.float64]] = tensor.detach().double().numpy()
    return array


@dataclass(frozen=True, kw_only=True)
class ProductSpectrum:
    """The top eigenpairs of a Kronecker product, whose eigenvectors are outer products.

    Attributes:
        values_K: The eigenvalues, the largest first.
        outputs_KO, inputs_KI: The factors' eigenvectors; the outer product of row k of each is
            eigenvector k.
    """

    values_K: Array
    outputs_KO: Array
    inputs_KI: Array

    def eigenpairs(self) -> Eigenpairs:
        """Returns the eigenpairs with the eigenvectors written out, weights row by row."""
        vectors = np.einsum("ko,ki->koi", self.outputs_KO, self.inputs_KI)
        return Eigenpairs(self.values_K, vectors.reshape(len(vectors), -1))


def product_spectrum(factors: Factors, count: int) -> ProductSpectrum:
    """Returns the top `count` eigenpairs, or all if there are fewer."""
    outputs, output_vectors = np.linalg.eigh(factors.outputs_OO)
    inputs, input_vectors = np.linalg.eigh(factors.inputs_II)
    products = np.outer(outputs, inputs).reshape(-1)
    order = np.argsort(products)[::-1][:count]
    of_output, of_input = np.unravel_index(order, (len(outputs), len(inputs)))
    return ProductSpectrum(
        values_K=products[order],
        outputs_KO=output_vectors.T[of_output],
        inputs_KI=input_vectors.T[of_input],
    )


def captured_shares(factors: Factors, vectors_KP: Array) -> Array:
    """Computes how much of some vectors lies in the spaces of a product's top eigenvectors.

    Args:
        factors: The factors of the Kronecker product.
        vectors_KP: Vectors of length 1, weights row by row.

    Returns:
        `(P,)`, for n = 1 … P: the mean share of the vectors' squared length that lies in the space
        of the product's top n eigenvectors.
    """
    outputs, output_vectors = np.linalg.eigh(factors.outputs_OO)
    inputs, input_vectors = np.linalg.eigh(factors.inputs_II)
    matrices_KOI = vectors_KP.reshape(-1, len(outputs), len(inputs))
    squares_OI = ((output_vectors.T @ matrices_KOI @ input_vectors) ** 2).mean(0)
    order = np.argsort(np.outer(outputs, inputs).reshape(-1))[::-1]
    shares: Array = squares_OI.reshape(-1)[order].cumsum()
    return shares
