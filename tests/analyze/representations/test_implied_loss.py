"""Curl and line integrals of fields whose curl and potential are known."""

import math

import pytest
import torch
from torch import Tensor

from sglm.analyze.representations.implied_loss import (
    SEGMENTS,
    implied_differences,
    jacobian_norms,
    path_agreement,
    true_differences,
)

SIZE = 6
# Central differences of functions of third derivatives of order one, with steps of 1e-4.
DIFFERENCES = 1e-6


def states(places: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(places, SIZE, generator=generator, dtype=torch.float64)


def matrix(seed: int = 7) -> Tensor:
    return states(SIZE, seed)


def potential(points: Tensor) -> Tensor:
    """Of fourth degree, with a gradient whose coordinates depend on each other."""
    return (points @ matrix()).pow(2).sum(-1).pow(2) / 4 / SIZE**2 + points[..., 0]


def gradient(points: Tensor) -> Tensor:
    leaf = points.clone().requires_grad_()
    (found,) = torch.autograd.grad(potential(leaf).sum(), leaf)
    return found


def test_a_gradient_has_no_curl_and_a_rotation_nothing_else() -> None:
    assert jacobian_norms(gradient, states(5)).rotation < DIFFERENCES
    skew = matrix() - matrix().T
    whirl = jacobian_norms(lambda points: points @ skew.T, states(5))
    assert whirl.rotation == pytest.approx(1, abs=DIFFERENCES)
    # Every coordinate by itself, as an element-wise synthesizer computes it.
    assert jacobian_norms(lambda points: points.sin(), states(5)).rotation < DIFFERENCES
    assert math.isnan(jacobian_norms(torch.zeros_like, states(5)).rotation)


@pytest.mark.parametrize("directions", [2, 4, 32])
def test_random_planes_know_the_norms_of_both_parts(directions: int) -> None:
    linear = matrix()
    found = jacobian_norms(lambda points: points @ linear.T, states(4000), directions=directions)
    symmetric = (linear + linear.T) / 2
    symmetric = symmetric - symmetric.trace() / SIZE * torch.eye(SIZE)
    antisymmetric = (linear - linear.T) / 2
    # Four thousand planes at least: their mean square has a standard error below 2.5 %.
    assert found.antisymmetric == pytest.approx(float(antisymmetric.square().sum()), rel=0.08)
    assert found.symmetric == pytest.approx(float(symmetric.square().sum()), rel=0.08)


def test_the_integral_of_a_gradient_is_the_difference_of_its_potential() -> None:
    start, end = states(3), states(3, seed=1)
    implied_MG = implied_differences(gradient, start, end)
    true_MG = true_differences(potential, start, end)
    assert implied_MG.shape == (3, SEGMENTS + 1)
    torch.testing.assert_close(implied_MG, true_MG)  # exact for this degree
    torch.testing.assert_close(true_MG[:, -1], potential(end) - potential(start))
    # A whirl does no work along a radius, though it is far from zero.
    skew = matrix() - matrix().T
    radial = implied_differences(lambda points: points @ skew.T, torch.zeros_like(end), end)
    torch.testing.assert_close(radial, torch.zeros_like(radial))


def test_agreement_over_paths() -> None:
    true_M = states(1).flatten()
    half = path_agreement(true_M / 2, true_M)
    assert half == pytest.approx((1, 2, 0.75), abs=DIFFERENCES)
    assert path_agreement(-true_M, true_M) == pytest.approx((-1, -1, -3), abs=DIFFERENCES)
    nothing = path_agreement(torch.zeros_like(true_M), true_M)
    assert math.isnan(nothing.correlation)
    assert nothing.explained == 0
