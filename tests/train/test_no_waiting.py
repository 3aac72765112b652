"""A training step waits for no number from the device: on a GPU each wait leaves it idle."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sglm.dni.gauge import Gauge
from sglm.optim.precision import unchecked_precision
from sglm.optim.schedule import Mode
from sglm.train.step import train_step
from tests.dni.test_adjoint import INJECT, PROBE, with_adjoint
from tests.dni.test_estimator import batcher
from tests.dni.test_gauge import batcher as batcher_of_the_gauge
from tests.train.test_step import REAL, SYNTHETIC, make_learner, random_estimator, take_step


class Waits(TorchDispatchMode):
    """Notes every operation that hands a number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(each in name for each in ("_local_scalar_dense", "is_nonzero", "aten.nonzero")):
            self.asked.append(name)
        return func(*args, **(kwargs or {}))


def test_the_watchman_is_awake() -> None:
    with Waits() as waits:
        bool(torch.isfinite(torch.ones(2)).all())
        float(torch.ones(()))
    assert len(waits.asked) == 2


@pytest.mark.parametrize("kind", ["mlp", "recurrent"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", list(Mode))
def test_a_step_waits_for_nothing(mode: Mode, precision: str, kind: str) -> None:
    plan, text = SYNTHETIC if mode is Mode.SYNTHETIC else REAL, batcher()
    learner = make_learner(random_estimator(1, kind))
    learner.precision = unchecked_precision(precision, torch.device("cpu"))
    with Waits() as waits:
        for step in range(text.steps_per_epoch):  # of which some are probes
            take_step(learner, text.at(step), plan, step)
    assert waits.asked == []


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_nor_does_one_with_an_adjoint(every: int, exact: bool) -> None:
    learner = with_adjoint(exact=exact, stretch=every, factor=None, trust_bound=True)
    text = batcher(stretch=every)
    with Waits() as waits:
        for step in range(5):
            decision = PROBE if step % 2 == 0 else INJECT
            train_step(learner, text.at(step), decision, learning_rate=1e-2)
    assert waits.asked == []


def test_nor_does_one_that_is_gauged() -> None:
    learner, text = with_adjoint(exact=True), batcher_of_the_gauge()
    learner.gauge = Gauge(torch.device("cpu"))
    with Waits() as waits:
        for step in range(4):
            window = text.at(step)._replace(ahead=text.ahead(step, 6))
            train_step(learner, window, INJECT, learning_rate=1e-2)
    assert waits.asked == []
    assert learner.gauge.reading().windows == 4


@pytest.mark.parametrize("noise", [False, True])
def test_nor_does_one_without_a_synthesizer_or_with_noise(noise: bool) -> None:
    estimator, text = random_estimator(1), batcher()
    estimator.injection.noise = torch.Generator().manual_seed(0)
    learner = make_learner(estimator if noise else None)
    with Waits() as waits:
        for step in range(text.steps_per_epoch):
            take_step(learner, text.at(step), SYNTHETIC, step)
    assert waits.asked == []
