"""Activation and temporal activation regularisation: values, limits, and no trace when off."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sglm.kernels.dropout import activation_penalty
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape

T, B, H, V = 5, 3, 4, 7


def some_outputs(steps: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs_TBH = torch.randn(steps, B, H, generator=generator, dtype=torch.float64)
    kept_BH = torch.rand(B, H, generator=generator, dtype=torch.float64) > 0.4
    return outputs_TBH, outputs_TBH * kept_BH / 0.6


def test_it_is_the_mean_square_and_the_mean_squared_difference() -> None:
    outputs_TBH, features_TBH = some_outputs()
    size = np.mean(features_TBH.numpy() ** 2)
    change = np.mean((outputs_TBH.numpy()[1:] - outputs_TBH.numpy()[:-1]) ** 2)
    # float64: sums of sixty terms in another order
    assert activation_penalty(
        outputs_TBH, features_TBH, activation=2.0, temporal=0.0
    ).item() == pytest.approx(2 * size, rel=1e-12)
    assert activation_penalty(
        outputs_TBH, features_TBH, activation=0.0, temporal=3.0
    ).item() == pytest.approx(3 * change, rel=1e-12)
    assert activation_penalty(
        outputs_TBH, features_TBH, activation=2.0, temporal=3.0
    ).item() == pytest.approx(2 * size + 3 * change, rel=1e-12)


def test_it_does_not_depend_on_how_many_lanes_say_the_same() -> None:
    outputs_TBH, features_TBH = some_outputs()
    twice = activation_penalty(
        torch.cat([outputs_TBH, outputs_TBH], dim=1),
        torch.cat([features_TBH, features_TBH], dim=1),
        activation=2.0,
        temporal=1.0,
    )
    once = activation_penalty(outputs_TBH, features_TBH, activation=2.0, temporal=1.0)
    assert twice.item() == pytest.approx(once.item(), rel=1e-12)  # float64, another order


def test_outputs_that_stand_still_cost_nothing_over_time() -> None:
    outputs_TBH, features_TBH = some_outputs()
    still_TBH = outputs_TBH[:1].expand(T, B, H)
    assert activation_penalty(still_TBH, features_TBH, activation=0.0, temporal=1.0) == 0


def test_a_window_of_one_step_has_no_differences() -> None:
    outputs_TBH, features_TBH = some_outputs(steps=1)
    assert activation_penalty(outputs_TBH, features_TBH, activation=0.0, temporal=1.0) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    value = (1 + 2**-7) * 2**-13  # exact in both; its square is not, and in float16 it is zero
    outputs_TBH = torch.full((10, 4, 8), value, dtype=dtype)
    outputs_TBH[1::2] *= -1
    penalty = activation_penalty(outputs_TBH, outputs_TBH, activation=1.0, temporal=1.0)
    assert penalty.dtype == torch.float32
    # float32 sums of a few hundred equal terms
    assert penalty.item() == pytest.approx(value**2 + (2 * value) ** 2, rel=1e-5)


def trained(coefficients: tuple[float, float] | None) -> list[Tensor]:
    """Weights after three updates: with the penalty in the loss, or without any (None)."""
    torch.manual_seed(0)
    model = LSTMLanguageModel(
        ModelShape(vocab_size=V, layers=2, hidden=5, embedding=H, tied=True),
        DropoutRates(input=0.2, between=0.2, output=0.3, embedding=0.1, weight=0.3),
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ids = torch.randint(V, (T + 1, B))
    for _ in range(3):
        start = model.start_state(B)
        if coefficients is None:
            features_TBH, _ = model.features(ids[:-1], start)
            loss = model.nll(features_TBH, ids[1:])
        else:
            outputs_TBH, _ = model.outputs(model.embed(ids[:-1])[0], start)
            features_TBH = model.drop_outputs(outputs_TBH)
            loss = model.nll(features_TBH, ids[1:])
            activation, temporal = coefficients
            penalty = activation_penalty(
                outputs_TBH, features_TBH, activation=activation, temporal=temporal
            )
            loss = loss + T * B * penalty
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [weight.detach() for weight in model.parameters()]


def test_zero_coefficients_train_bitwise_as_if_it_were_not_there() -> None:
    for actual, expected in zip(trained((0.0, 0.0)), trained(None), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (0.0, 1.0)])
def test_each_coefficient_alone_changes_training(coefficients: tuple[float, float]) -> None:
    pairs = zip(trained(coefficients), trained(None), strict=True)
    assert any(not torch.equal(actual, expected) for actual, expected in pairs)


def test_the_parts_of_features_are_features() -> None:
    torch.manual_seed(0)
    model = LSTMLanguageModel(
        ModelShape(vocab_size=V, layers=2, hidden=5, embedding=H, tied=True),
        DropoutRates(output=0.5),
    )
    ids = torch.randint(V, (T, B))
    model.eval()
    outputs_TBH, state = model.outputs(model.embed(ids)[0], model.start_state(B))
    features_TBH, same_state = model.features(ids, model.start_state(B))
    assert torch.equal(outputs_TBH, features_TBH)
    assert torch.equal(model.drop_outputs(outputs_TBH), features_TBH)
    assert torch.equal(state.packed(), same_state.packed())
    model.train()
    dropped_TBH = model.drop_outputs(outputs_TBH)
    assert (dropped_TBH == 0).any()
    assert torch.equal(dropped_TBH[dropped_TBH != 0], 2 * outputs_TBH[dropped_TBH != 0])
