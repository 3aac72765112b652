"""Landscapes that are known: a quadratic, a model's own; and steps that an optimizer would take."""

import math

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sglm.analyze.gradients.measure import LONG, SYNTHETIC, TRUNCATED
from sglm.analyze.landscape.finding import LandscapeFinding
from sglm.analyze.landscape.measure import (
    mean_gradient,
    mean_kl,
    norm,
    own_nats,
    random_direction,
    scaled,
    score_text,
    update_direction,
)
from sglm.analyze.moves import Move, moved
from sglm.analyze.reading import future_state_gradients, read
from sglm.config import OptimizerConfig
from tests.analyze.known import N, T, network, some_text

LANES = 4


def quadratic() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and the curvature of ½ Σ k·w²."""
    generator = torch.Generator().manual_seed(0)
    weights, curvature = (
        {
            "a": torch.randn(3, 2, generator=generator, dtype=torch.float64),
            "b": torch.randn(4, generator=generator, dtype=torch.float64),
        }
        for _ in range(2)
    )
    return weights, curvature


def dot(*factors: dict[str, Tensor]) -> float:
    return sum(
        float(torch.stack([each[name] for each in factors]).prod(0).sum()) for name in factors[0]
    )


def test_the_landscape_of_a_quadratic_is_the_quadratic() -> None:
    weights, curvature = quadratic()
    before = {name: each.clone() for name, each in weights.items()}
    gradient = {name: curvature[name] * each for name, each in weights.items()}
    down = scaled({name: -each for name, each in gradient.items()}, 1.0)
    aside = random_direction(down, torch.Generator().manual_seed(1))
    for x in (-0.5, 0.0, 2.0):
        for y in (-1.0, 0.0, 0.25):
            with moved(weights, [Move(down, x), Move(aside, y)]):
                found = dot(curvature, weights, weights) / 2
            path = {name: x * down[name] + y * aside[name] for name in weights}
            right = dot(curvature, before, before) / 2 + dot(gradient, path)
            right += dot(curvature, path, path) / 2
            assert found == pytest.approx(right, rel=1e-12)
            assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_weights_are_put_back_when_a_measurement_fails() -> None:
    weights, down = quadratic()
    before = {name: each.clone() for name, each in weights.items()}
    with pytest.raises(ZeroDivisionError), moved(weights, [Move(down, 1.0)]):
        1 / 0  # noqa: B018
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def test_directions_have_the_lengths_that_are_said() -> None:
    weights, down = quadratic()
    assert norm(scaled(down, 3.0)) == pytest.approx(3.0)
    zero = {name: torch.zeros_like(each) for name, each in weights.items()}
    assert norm(scaled(zero, 3.0)) == 0
    aside = random_direction(down, torch.Generator().manual_seed(1))
    for name in down:
        assert float(aside[name].norm()) == pytest.approx(float(down[name].norm()))
    assert abs(dot(aside, down)) < norm(down) ** 2


@pytest.mark.parametrize("clip", [None, 0.5])
def test_an_update_goes_where_adams_without_momentum_goes(clip: float | None) -> None:
    """Held against torch's Adam, which has seen other gradients before."""
    weights, gradient = quadratic()
    config = OptimizerConfig(kind="adam", learning_rate=0.01, beta2=0.9, clip_norm=clip)
    parameters = {name: torch.nn.Parameter(each.clone()) for name, each in weights.items()}
    adam = torch.optim.Adam(parameters.values(), lr=0.01, betas=(0.0, 0.9))
    for step in range(3):
        for name, parameter in parameters.items():
            parameter.grad = gradient[name] * (step + 1)
        adam.step()
    squares = {name: adam.state[each]["exp_avg_sq"].clone() for name, each in parameters.items()}
    before = {name: each.detach().clone() for name, each in parameters.items()}
    factor = 1.0 if clip is None else clip / norm(gradient)
    for name, parameter in parameters.items():
        parameter.grad = factor * gradient[name]
    adam.step()
    found = update_direction(gradient, config, (squares, 3))
    for name, parameter in parameters.items():
        right = (parameter.detach() - before[name]) / 0.01
        torch.testing.assert_close(found[name], right, rtol=1e-9, atol=1e-12)  # float64
    straight = update_direction(gradient, config, None)
    for name in gradient:
        torch.testing.assert_close(straight[name], -factor * gradient[name])


def test_the_gradient_of_all_windows_with_their_future_is_that_of_one_long_window() -> None:
    """In all weights, the embedding's included."""
    model, text = network(), some_text(N * T, LANES)
    reading = read(model, text, skipped=0, window=T, windows=N)
    after_NLS = reading.states_NLS.new_zeros(N, LANES, model.shape.state_size)
    for window in range(N - 1):
        own, to_end = range(window, window + 1), (N - window - 1) * T
        after_NLS[window] = future_state_gradients(
            model, reading, [to_end], windows=own, lanes=slice(None)
        )[0]
    found = mean_gradient(model, reading, after_NLS, windows=N, lanes=LANES)
    features, _ = model.features(text.inputs_CB, model.start_state(LANES))
    mean = model.nll(features, text.targets_CB, reduction="none").mean()
    named = dict(model.named_parameters())
    for name, right in zip(named, torch.autograd.grad(mean, [*named.values()]), strict=True):
        torch.testing.assert_close(found[name], right, rtol=1e-9, atol=1e-12)  # float64
    truncated = mean_gradient(model, reading, None, windows=N, lanes=LANES)
    assert norm({name: truncated[name] - found[name] for name in named}) > 1e-3
    nats = own_nats(model, reading, windows=N, lanes=LANES)
    assert nats == pytest.approx(float(mean.detach()), rel=1e-12)


def test_a_step_of_no_length_changes_no_prediction() -> None:
    model, text = network(), some_text(20, LANES)
    weights = dict(model.named_parameters())
    down = {name: torch.ones_like(each) for name, each in weights.items()}

    def seen(length: float) -> tuple[float, float]:
        with moved(weights, [Move(down, length)]):
            after = score_text(model, text, skipped=5, distribution_steps=3)
        return mean_kl(before.log_probabilities, after.log_probabilities), after.nats_L.mean()

    before = score_text(model, text, skipped=5, distribution_steps=3)
    assert before.log_probabilities.shape == (3 * LANES, model.shape.vocab_size)
    assert seen(0.0) == (0.0, before.nats_L.mean())
    # To second order in the step: the divergence is least where there is no step.
    small, double = seen(1e-4)[0], seen(2e-4)[0]
    assert double / small == pytest.approx(4, rel=1e-2)
    # The nats are those of one pass from the start state, without the steps that are skipped.
    features, _ = model.features(text.inputs_CB, model.start_state(LANES))
    nats_TL = model.nll(features, text.targets_CB, reduction="none")[5:]
    assert before.nats_L == pytest.approx(nats_TL.mean(0).detach().numpy(), rel=1e-12)


def test_the_divergence_is_kullbacks_and_leiblers() -> None:
    one, other = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.25, 0.75]])
    right = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert mean_kl(one.log(), other.log()) == pytest.approx(right, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((0.1, -0.2), "truncated -200.0 at 20.0% (the longest step tried)."),
        ((-0.2, 0.1), "truncated -200.0 at 10.0%."),
        ((0.2, 0.1), "truncated +100.0 at 20.0%, so no decrease."),
    ],
)
def test_only_of_a_decrease_it_is_said_that_a_longer_step_was_not_tried(
    changes: tuple[float, float], said: str
) -> None:
    line = {"change": [[each, each - 0.01, each + 0.01] for each in changes]}
    run = {"run": "run", "lines": {TRUNCATED: {"32": line}}, "lengths": [0.1, 0.2]}
    assert LandscapeFinding(runs=[run], plane={}).summary().endswith(said)


def test_the_legend_names_kinds_that_only_a_later_run_has() -> None:
    line = {"change": [[0.1, 0.0, 0.2]], "own_change": [0.1], "kl": [0.1]}
    real, synthetic = (
        {
            "run": "+".join(kinds),
            "lines": {kind: {"1": line, "32": line} for kind in kinds},
            "lengths": [0.1],
            "update_length": 0.1,
            "adam": True,
        }
        for kinds in ((TRUNCATED, LONG), (TRUNCATED, LONG, SYNTHETIC))
    )
    figure = Figure()
    LandscapeFinding(runs=[real, synthetic], plane={"change": {}}).draw(figure)
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named == [TRUNCATED, LONG, SYNTHETIC, "1 batch", "32 batches"]
