"""Kronecker factors, against matrices that are written out."""

import numpy as np
import pytest
import torch

from sglm.analyze.curvature.kronecker import (
    Factors,
    captured_shares,
    factorize,
    product_spectrum,
    random_cotangents,
)
from sglm.analyze.curvature.subspaces import Array, overlaps
from tests.analyze.curvature.test_subspaces import random_rows
from tests.analyze.curvature.tiny_losses import (
    brute_force,
    curvature_of,
    every_cotangent,
    tiny_loss,
)


def written_out(factors: Factors) -> Array:
    """Rows of the weight matrix one after the other."""
    return np.kron(factors.outputs_OO, factors.inputs_II)


@pytest.mark.parametrize("matrix", ["weight_ih", "weight_hh"])
def test_one_window_of_one_step_is_a_kronecker_product(matrix: str) -> None:
    window_loss = tiny_loss(windows=1, steps=1)
    for layer in (0, 1):
        found = factorize(window_loss, every_cotangent(window_loss), layer=layer)[matrix]
        _, gauss_newton = brute_force(window_loss, f"layers.{layer}.{matrix}")
        np.testing.assert_allclose(written_out(found.expand), gauss_newton, atol=1e-12)
        np.testing.assert_allclose(written_out(found.reduce), gauss_newton, atol=1e-12)


def test_constant_inputs_make_reduce_exact_and_expand_wrong() -> None:
    window_loss = tiny_loss(same=True)
    found = factorize(window_loss, every_cotangent(window_loss), layer=0)["weight_ih"]
    _, gauss_newton = brute_force(window_loss, "layers.0.weight_ih")
    np.testing.assert_allclose(written_out(found.reduce), gauss_newton, atol=1e-12)
    assert np.abs(written_out(found.expand) - gauss_newton).max() > 0.1 * gauss_newton.max()


@pytest.mark.parametrize("layer", [0, 1])
def test_the_sums_over_time_and_the_trace(layer: int) -> None:
    window_loss = tiny_loss()
    found = factorize(window_loss, every_cotangent(window_loss), layer=layer)
    # The bias is added at every step, as if its input were constantly one.
    _, of_bias = brute_force(window_loss, f"layers.{layer}.bias")
    _, traces = window_loss.features.trace(window_loss.embedded_TNI)
    for matrix, read_TNI in {
        "weight_ih": traces[layer].inputs_TNI,
        "weight_hh": traces[layer].hidden_TNH,
    }.items():
        np.testing.assert_allclose(found[matrix].reduce.outputs_OO, of_bias, atol=1e-12)
        _, gauss_newton = brute_force(window_loss, f"layers.{layer}.{matrix}")
        assert np.isclose(found[matrix].trace, np.trace(gauss_newton))
        rows = read_TNI.detach().numpy()
        summed = sum(np.outer(x, x) for x in rows.reshape(-1, rows.shape[-1])) / 12
        np.testing.assert_allclose(found[matrix].expand.inputs_II, summed, atol=1e-12)
        means = rows.mean(0)
        summed = sum(np.outer(x, x) for x in means) / 4
        np.testing.assert_allclose(found[matrix].reduce.inputs_II, summed, atol=1e-12)


def test_expand_takes_each_step_alone() -> None:
    window_loss = tiny_loss(layers=1)
    layer = window_loss.model.layers[0]
    found = factorize(window_loss, every_cotangent(window_loss), layer=0)["weight_hh"]

    def features(offsets_TO: torch.Tensor) -> torch.Tensor:
        """With something added to the gates of each step."""
        hidden, cell = window_loss.features.state.hidden[0], window_loss.features.state.cell[0]
        outputs = []
        for embedded, offset_O in zip(window_loss.embedded_TNI, offsets_TO, strict=True):
            gates = embedded @ layer.weight_ih.t() + hidden @ layer.weight_hh.t()  # type: ignore[operator]
            i, f, g, o = (gates + layer.bias + offset_O).chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs)

    offsets_TO = torch.zeros(3, 12, dtype=torch.float64)
    _, gauss_newton = curvature_of(window_loss, features, offsets_TO)
    blocks = gauss_newton.reshape(3, 12, 3, 12)
    expected = sum(blocks[step, :, step] for step in range(3))
    np.testing.assert_allclose(found.expand.outputs_OO, expected, atol=1e-12)


def test_random_cotangents_have_the_curvature_of_the_loss_as_second_moment() -> None:
    window_loss = tiny_loss()
    draws = 4000
    drawn = torch.stack(list(random_cotangents(window_loss, draws))).flatten(1, 2)
    moments = torch.einsum("dsh,dtk->stkh", drawn, drawn) / draws
    expected = torch.zeros_like(moments)
    curvature = window_loss.loss.curvature_SHH
    for token, each in enumerate(curvature):
        expected[token, token] = each
    # Of 4,000 draws: five times 1/√4000 of the largest entry.
    assert (moments - expected).abs().max() < 5 / draws**0.5 * curvature.max()


def test_the_spectrum_of_a_product_without_writing_it_out() -> None:
    dice = np.random.default_rng(3)
    outputs, inputs = (dice.standard_normal((size, 2 * size)) for size in (5, 4))
    factors = Factors(outputs_OO=outputs @ outputs.T, inputs_II=inputs @ inputs.T)
    values, vectors = np.linalg.eigh(written_out(factors))
    found = product_spectrum(factors, 6)
    np.testing.assert_allclose(found.values_K, values[::-1][:6])
    assert np.allclose(overlaps(found.eigenpairs().vectors_KP, vectors.T[::-1][:6]), 1)
    rows = random_rows(3, 20)
    expected = ((rows @ vectors[:, ::-1]) ** 2).mean(0).cumsum()
    np.testing.assert_allclose(captured_shares(factors, rows), expected)
    assert len(product_spectrum(factors, 99).values_K) == 20
