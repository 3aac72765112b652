"""Hessian, Gauss–Newton matrix, their top eigenpairs and Kronecker factors, where all is known."""

import numpy as np
import pytest

from sglm.analyze.curvature.spectrum import gauss_newton, hessian
from tests.analyze.curvature.tiny_losses import brute_force, tiny_loss
from tests.extras.conftest import needs

needs("curvlinops")
needs("scipy")

NAMES = [f"layers.{layer}.{matrix}" for layer in (0, 1) for matrix in ("weight_ih", "weight_hh")]


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_matrices(name: str) -> None:
    window_loss = tiny_loss()
    weight = window_loss.features.get_parameter(name)
    for operator, matrix in zip(
        (hessian, gauss_newton), brute_force(window_loss, name), strict=True
    ):
        products = operator(window_loss, weight) @ np.eye(weight.numel())
        np.testing.assert_allclose(products, matrix, atol=1e-12)
