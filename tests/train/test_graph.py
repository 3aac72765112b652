"""A recorded pass is the pass that it was recorded from."""

from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sglm.config import Config
from sglm.dni import row_lessons
from sglm.dni.adjoint import AdjointEstimator
from sglm.errors import ConfigError
from sglm.optim.precision import unchecked_precision
from sglm.runtime.calls import Calls, RecordedCalls
from sglm.train.build import build_learner
from sglm.train.graph import GraphedPass, uses_cuda_graph
from sglm.train.learner import capture
from sglm.train.step import train_step
from sglm.train.window_pass import WindowPass
from tests.dni.test_adjoint import EVERY_DROPOUT, PROBE, with_adjoint
from tests.dni.test_estimator import INJECT, PLAIN, batcher
from tests.tape import use_tapes
from tests.train.test_step import (
    SYNTHETIC,
    B,
    T,
    all_equal,
    make_learner,
    random_estimator,
    take_step,
    weights,
)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """Instead of recording, which takes a GPU, the function itself; what it was recorded with."""
    samples: list[tuple[Tensor, ...]] = []

    def record(callables: nn.Module, sample_args: tuple[Tensor, ...]) -> nn.Module:
        samples.append(sample_args)
        torch.rand(1)  # recording runs it, and so draws masks
        return callables

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    forked = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: forked(devices=[]))
    return samples


def test_steps_are_the_same_and_each_shape_is_recorded_once(
    recorded: list[tuple[Tensor, ...]],
) -> None:
    plain, graphed = make_learner(random_estimator(1)), make_learner(random_estimator(1))
    graphed.window_pass = GraphedPass(WindowPass(graphed.model))
    text = batcher(epoch=7)
    for learner in (plain, graphed):
        torch.manual_seed(0)
        for step in range(6):
            take_step(learner, text.at(step), SYNTHETIC, step)
        window = text.at(6)
        short = window._replace(inputs_TB=window.inputs_TB[:2], targets_TB=window.targets_TB[:2])
        take_step(learner, short, SYNTHETIC, 6)
    assert all_equal(weights(plain.model), weights(graphed.model))
    assert len(recorded) == 2
    inputs_TB, _, *state = recorded[0]
    assert inputs_TB.data_ptr() != text.at(0).inputs_TB.data_ptr()
    assert not inputs_TB.requires_grad
    assert all(part.requires_grad and part.is_leaf for part in state)


def test_a_recorded_pass_hands_out_what_the_adjoint_learns_from(
    recorded: list[tuple[Tensor, ...]],
) -> None:
    """The features' gradient comes out of a graph as that of zeros that go into it."""
    after = []
    for is_graphed in (False, True):
        learner = with_adjoint(EVERY_DROPOUT, exact=False)
        estimator = learner.estimator
        assert isinstance(estimator, AdjointEstimator)
        if is_graphed:
            learner.window_pass = GraphedPass(WindowPass(learner.model, keeps_features=True))
        torch.manual_seed(0)
        text = batcher(stretch=1)
        for step in range(4):
            train_step(learner, text.at(step), INJECT, learning_rate=1e-2)
        assert estimator.expected_row is not None
        after.append(weights(learner.model) + weights(estimator.expected_row))
    assert all_equal(*after)
    inputs_TB, _, tap_TBH, *_ = recorded[0]
    assert tap_TBH.shape == (*inputs_TB.shape, learner.model.shape.widths[-1])
    assert tap_TBH.requires_grad


def test_random_windows_cannot_be_recorded(tiny_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="windows of one length"):
        tiny_config(train={"cuda_graph": True, "truncation": "random"}, schedule={"mode": "real"})


@pytest.mark.parametrize(
    ("settings", "is_cuda", "recorded"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"train": {"cuda_graph": False}}, True, False),
        ({"train": {"cuda_graph": True}}, False, False),
        ({"train": {"truncation": "random"}, "schedule": {"mode": "real"}}, True, False),
        ({"train": {"window": 5, "horizon": 10}, "schedule": {"mode": "real"}}, True, False),
        ({"model": {"softmax": "adaptive"}}, True, False),
        ({"synthesizer": {"kind": "mlp"}}, True, True),
    ],
)
def test_windows_that_are_alike_are_recorded_unless_told_otherwise(
    settings: dict[str, dict[str, object]],
    *,
    is_cuda: bool,
    recorded: bool,
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    model = Mock()
    model.embedding.is_cuda, model.ranks.count = is_cuda, 1
    model.embedding.get_device.return_value = 0
    config = tiny_config(**settings)
    assert uses_cuda_graph(config, model) is recorded
    if config.train.cuda_graph == "auto":
        for spoiled in ("ranks.count", "embedding.get_device.return_value"):
            other = Mock(**{"embedding.is_cuda": is_cuda, "ranks.count": 1, spoiled: 2})
            assert not uses_cuda_graph(config, other)


def test_on_a_cpu_it_makes_no_difference(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(train={"cuda_graph": True})
    cpu = torch.device("cpu")
    learner = build_learner(config, np.ones(9, dtype=np.int64), unchecked_precision("fp32", cpu))
    assert isinstance(learner.window_pass, WindowPass)
    assert isinstance(learner.estimator, AdjointEstimator)
    assert type(learner.estimator.calls) is Calls


@pytest.mark.parametrize("stretch", [1, 3])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_recorded_synthesizer_is_the_one_that_is_launched(
    monkeypatch: pytest.MonkeyPatch, stretch: int, exact: bool, factor: float | None
) -> None:
    """Readings, injections and q's lessons, bit for bit: on probes, at ends of texts, in both
    modes. The windows' own passes have their graph besides."""
    tapes = use_tapes(monkeypatch)
    # Every second step, from another one each time. (Of a single step the recorded lesson would be
    # a copy, aligned otherwise in memory, and the CPU's products would differ in their last bits.)
    monkeypatch.setattr(row_lessons, "_LESSON_TOKENS", B * T // 2)
    after = []
    for calls in (Calls(), RecordedCalls()):
        learner = with_adjoint(
            EVERY_DROPOUT, exact=exact, factor=factor, stretch=stretch, reach=T + 1, calls=calls
        )
        torch.manual_seed(0)
        text = batcher(stretch=stretch, epoch=7)
        for step in range(35):
            decision = PROBE if step % 5 == 0 else PLAIN if step < 3 else INJECT
            train_step(learner, text.at(step), decision, learning_rate=1e-2)
        state = capture(learner)
        after.append([each for each in tree_leaves(state) if isinstance(each, Tensor)])
    assert all_equal(*after)
    # Readings of at least two lengths, for probes and ahead; injections; lessons.
    assert len(tapes) >= (3 if exact else 4)
    assert all(tape.replays >= 2 for tape in tapes)
