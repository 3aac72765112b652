"""The interface of estimators, through the training step: what they are told, and the oracle."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sglm.config import RegularizerConfig
from sglm.dni.estimator import Observation, PlainTruncation
from sglm.model.state import LSTMState
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Batcher, Window
from sglm.train.step import train_step
from sglm.train.window_decision import WindowDecision
from sglm.train.window_pass import WindowPass
from tests.dni.exact import ExactEstimator
from tests.train.test_step import B, T, V, gradients, make_learner, take_step, windows

INJECT = WindowDecision(mode=Mode.SYNTHETIC, inject=True)
PLAIN = WindowDecision(mode=Mode.REAL)


class Diary(PlainTruncation):
    """Writes down how it is called."""

    wants_features = True

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.observations: list[Observation] = []
        self.states: list[Tensor] = []

    def begin_text(self) -> None:
        self.calls.append("begin_text")

    def begin_stretch(self, *args: Any, **named: Any) -> None:
        self.calls.append("begin_stretch")

    def enter_window(self, incoming: LSTMState) -> None:
        self.calls.append("enter_window")
        self.states.append(incoming.packed().detach())

    def estimate(self, outgoing: LSTMState) -> Tensor:
        self.calls.append("estimate")
        return super().estimate(outgoing)

    def end_window(self, observation: Observation) -> None:
        self.calls.append("end_window")
        self.observations.append(observation)


def batcher(stretch: int = 2, epoch: int = 5) -> Batcher:
    ids_N = np.random.default_rng(0).integers(V, size=B * epoch * T).astype(np.uint16)
    return Batcher(ids_N, batch=B, window=T, bos_id=0, stretch=stretch, lookahead=3)


def test_an_estimator_is_called_in_the_order_of_its_interface() -> None:
    diary, text = Diary(), batcher()
    learner = make_learner(diary)
    for step in range(3):
        train_step(learner, text.at(step), INJECT if step == 1 else PLAIN, learning_rate=1e-2)
    assert diary.calls == [
        *("begin_text", "begin_stretch", "enter_window", "end_window"),
        *("enter_window", "estimate", "end_window"),
        *("begin_stretch", "enter_window", "end_window"),
    ]
    # The state after a window is the state before the next.
    for observation, entered in zip(diary.observations, diary.states[1:], strict=False):
        assert torch.equal(observation.outgoing.packed(), entered)
    assert [each.injected for each in diary.observations] == [False, True, False]


def test_injecting_zero_is_plain_truncation() -> None:
    plain, diary = make_learner(), make_learner(Diary())
    for step in range(4):
        train_step(plain, batcher().at(step), PLAIN, learning_rate=1e-2)
        train_step(diary, batcher().at(step), INJECT, learning_rate=1e-2)
    pairs = zip(plain.model.parameters(), diary.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("precision", ["fp64", "fp16"])
@pytest.mark.parametrize("injected", [False, True])
def test_the_gradient_at_the_features_is_that_of_the_nats(injected: bool, precision: str) -> None:
    """∂(Σ nats)/∂h = softmax(Wh + b)·W − W[y], whatever is injected and however it is scaled."""
    (window,), diary = windows(1), Diary()
    learner = make_learner(diary, dtype=precision)
    model = learner.model
    learner.window_pass = WindowPass(model, keeps_features=True)
    weight_VH, bias_V = model.output_weight.detach().clone(), model.softmax_bias.detach().clone()
    train_step(learner, window, INJECT if injected else PLAIN, learning_rate=0.0)
    features = diary.observations[0].features
    assert features is not None
    assert torch.equal(features.targets_TB, window.targets_TB)
    of_type = features.features_TBH.to(weight_VH.dtype)
    probabilities_TBV = (of_type @ weight_VH.t() + bias_V).softmax(-1)
    expected_TBH = probabilities_TBV @ weight_VH - weight_VH[window.targets_TB]
    # float64: sums of a dozen products; fp16 has eleven binary digits
    rtol, atol = (1e-10, 1e-12) if precision == "fp64" else (0.05, 1e-3)
    found_TBH = features.gradient_TBH.to(weight_VH.dtype)
    torch.testing.assert_close(found_TBH, expected_TBH, rtol=rtol, atol=atol)


def test_features_are_shown_to_those_who_ask_alone() -> None:
    (window,), diary = windows(1), Diary()
    learner = make_learner(diary)
    train_step(learner, window, PLAIN, learning_rate=0.0)
    assert diary.observations[0].features is None


def test_penalties_are_no_part_of_what_comes_back_to_the_features() -> None:
    (window,) = windows(1)
    found = []
    for activation in (0.0, 2.0):
        diary = Diary()
        learner = make_learner(diary)
        learner.window_pass = WindowPass(
            learner.model,
            regularizer=RegularizerConfig(activation=activation),
            keeps_features=True,
        )
        train_step(learner, window, PLAIN, learning_rate=0.0)
        features = diary.observations[0].features
        assert features is not None
        found.append((features.gradient_TBH, diary.observations[0].gradient_BS))
    (without, state_without), (with_it, state_with) = found
    assert torch.equal(with_it, without)
    assert not torch.equal(state_with, state_without)  # but of what comes back to the state


def test_the_oracle_makes_a_stretch_of_windows_into_one() -> None:
    """With the exact gradient of all the text to come, windows of T add up to one of their whole
    length (for a model that does not move); and plain truncation does not have the law."""
    count, still = 3, StepPlan(0.0, Mode.REAL, 0)
    text = batcher(stretch=count, epoch=count)
    parts = [text.at(step) for step in range(count)]
    whole = Window(
        torch.cat([each.inputs_TB for each in parts]),
        torch.cat([each.targets_TB for each in parts]),
        is_first=True,
        is_last=True,
    )
    learner = make_learner()
    take_step(learner, whole, still, 0)
    expected = [g * whole.targets_TB.numel() for g in gradients(learner)]

    def total(learner: Any) -> list[Tensor]:
        sums: list[Tensor] = []
        for window in parts:
            decision = PLAIN if window.is_last else INJECT
            train_step(learner, window, decision, learning_rate=0.0)
            scaled = [g * window.targets_TB.numel() for g in gradients(learner)]
            sums = [a + b for a, b in zip(sums, scaled, strict=True)] if sums else scaled
        return sums

    for exact, right in zip(
        total(make_learner(ExactEstimator(stretch=count))), expected, strict=True
    ):
        # float64: sums of a few hundred products, in another order
        torch.testing.assert_close(exact, right, rtol=1e-10, atol=1e-12)
    truncated = total(make_learner())
    assert max((a - b).abs().max() for a, b in zip(truncated, expected, strict=True)) > 1e-3


def test_the_oracle_goes_on_in_the_midst_of_a_stretch() -> None:
    text, first = batcher(), ExactEstimator(stretch=2)
    learner = make_learner(first)
    train_step(learner, text.at(0), INJECT, learning_rate=1e-2)
    second = ExactEstimator(stretch=2)
    second.load_state_dict(first.state_dict())
    for each in (first, second):
        each.enter_window(learner.state)
    assert torch.equal(first.estimate(learner.state), second.estimate(learner.state))
