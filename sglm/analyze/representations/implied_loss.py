"""Is a field of synthetic gradients the gradient of a loss, and of which one?

A synthetic gradient that is a function ŝ of the state stands in for a loss's gradient. It is a
gradient only if its Jacobian is symmetric, and then the loss is its line integral along any path
(Czarnecki et al. 2017 draw the loss that synthetic gradients imply beside the true one).

Shapes: M places in a text, P points of the state space at each, S coordinates of a state, K
directions, G ends of segments of a path.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# `(M, P, S) → (M, P, S)`: the gradient at P states that replace the state at each of M places,
# given the text that follows there. In float64.
Field = Callable[[Tensor], Tensor]
# `(M, P, S) → (M, P)`: the loss of that text in nats.
Loss = Callable[[Tensor], Tensor]

DIRECTIONS = 32
SEGMENTS = 8
_STEP = 1e-4  # of central differences, in units of the state; their error goes with its square
_NODES = 3  # of the Gauss–Legendre rule in each segment


class JacobianNorms(NamedTuple):
    """Mean squared Frobenius norms of two parts of the Jacobian J = ∂ŝ/∂s.

    Attributes:
        antisymmetric: Norm of (J − Jᵀ)/2, the curl.
        symmetric: Norm of (J + Jᵀ)/2 without its trace, a uniform pull that the curl is not
            compared with.
    """

    antisymmetric: float
    symmetric: float

    @property
    def rotation(self) -> float:
        """The antisymmetric part's share of the sum.

        It is 0 for a gradient, ½ for a matrix of independent entries and 1 for a pure rotation; NaN
        if both parts are zero, as for a constant field.
        """
        both = self.antisymmetric + self.symmetric
        return self.antisymmetric / both if both > 0 else float("nan")


def jacobian_norms(
    field: Field, states_MS: Tensor, *, directions: int = DIRECTIONS, seed: int = 0
) -> JacobianNorms:
    """Estimates the norms of both parts of a field's Jacobian from random planes.

    In a plane of orthonormal u and v the circulation is vᵀJu − uᵀJv. Over random planes the mean
    square of half of it is ‖A‖²/(S(S−1)) for the antisymmetric part A, and that of (vᵀJu + uᵀJv)/2
    is ‖Σ‖²/((S+2)(S−1)) for the symmetric part Σ without its trace. So the norms follow from the
    K(K−1)/2 planes of K random directions, without the whole matrix. Derivatives are central
    differences, because an estimate need not be differentiable.

    Args:
        field: See `Field`.
        states_MS: One state per place, at which the Jacobian is estimated.
        directions: K, cut to S if larger.
        seed: Seed of the directions.
    """
    places, size = states_MS.shape
    directions = min(directions, size)
    generator = torch.Generator().manual_seed(seed)
    random_MSK = torch.randn(places, size, directions, generator=generator, dtype=states_MS.dtype)
    steps_MKS = torch.linalg.qr(random_MSK).Q.mT
    points_MPS = torch.cat(
        (states_MS[:, None] + _STEP * steps_MKS, states_MS[:, None] - _STEP * steps_MKS), dim=1
    )
    ahead_MKS, behind_MKS = field(points_MPS).chunk(2, dim=1)
    change_MKS = (ahead_MKS - behind_MKS) / (2 * _STEP)
    within_MKK = steps_MKS @ change_MKS.mT  # uᵀJv for every two directions
    above = torch.triu_indices(directions, directions, offset=1)
    one, other = within_MKK[:, above[0], above[1]], within_MKK[:, above[1], above[0]]
    return JacobianNorms(
        antisymmetric=float(((one - other) / 2).square().mean()) * size * (size - 1),
        symmetric=float(((one + other) / 2).square().mean()) * (size + 2) * (size - 1),
    )


def points_between(from_MS: Tensor, to_MS: Tensor, parts: Tensor) -> Tensor:
    """Returns points on straight lines between states, `(M, P, S)`, at P shares of their length."""
    return from_MS[:, None] + parts[:, None] * (to_MS - from_MS)[:, None]


def implied_differences(field: Field, from_MS: Tensor, to_MS: Tensor) -> Tensor:
    """Integrates ⟨ŝ, ds⟩ along straight lines, up to the end of each of `SEGMENTS` equal segments.

    If the field is a gradient, this is the difference of the loss, up to the error of the
    Gauss–Legendre rule, which is exact for polynomials of a degree below six in each segment.

    Returns:
        `(M, SEGMENTS + 1)`, in nats; 0 at the beginning.
    """
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(_NODES))
    starts = torch.arange(SEGMENTS, dtype=torch.float64)[:, None]
    parts = ((starts + (nodes + 1) / 2) / SEGMENTS).flatten()
    gradients_MPS = field(points_between(from_MS, to_MS, parts))
    slopes_MP = (gradients_MPS @ (to_MS - from_MS)[:, :, None]).squeeze(2)
    pieces_MG = (slopes_MP.view(-1, SEGMENTS, _NODES) * weights / 2 / SEGMENTS).sum(2)
    return torch.nn.functional.pad(pieces_MG.cumsum(1), (1, 0))


def true_differences(loss: Loss, from_MS: Tensor, to_MS: Tensor) -> Tensor:
    """Returns the loss at the same points, less the loss at the beginning of each line."""
    parts = torch.linspace(0, 1, SEGMENTS + 1, dtype=torch.float64)
    losses_MG = loss(points_between(from_MS, to_MS, parts))
    return losses_MG - losses_MG[:, :1]


class PathAgreement(NamedTuple):
    """The agreement of implied and true differences of the loss from beginning to end, over paths.

    Attributes:
        correlation: Pearson's correlation.
        slope: ⟨true, implied⟩ / ⟨implied, implied⟩: 1 if the implied loss has the right size.
        explained: 1 − Σ(true − implied)² / Σ true².
    """

    correlation: float
    slope: float
    explained: float


def path_agreement(implied_M: Tensor, true_M: Tensor) -> PathAgreement:
    """Measures the agreement; if nothing is implied, 0 is explained and the rest is NaN."""
    if not bool(implied_M.any()):
        return PathAgreement(float("nan"), float("nan"), 0.0)
    return PathAgreement(
        correlation=float(torch.corrcoef(torch.stack((implied_M, true_M)))[0, 1]),
        slope=float(true_M @ implied_M / (implied_M @ implied_M)),
        explained=float(1 - (true_M - implied_M).square().sum() / true_M.square().sum()),
    )
