"""The decision of a window, as a table; every way to it leads through one function."""

import pytest
import torch

from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Window
from sglm.train.runaway import RunawayWatch
from sglm.train.window_decision import DecisionRule, WindowDecision, followed_mode

IDS = torch.zeros(2, 1, dtype=torch.int64)
WINDOW = Window(IDS, IDS, is_first=False, is_last=False)
LAST = WINDOW._replace(is_last=True)
REAL, SYNTHETIC = StepPlan(1.0, Mode.REAL, 1), StepPlan(1.0, Mode.SYNTHETIC, 1)
RULE = DecisionRule(probe_every=10)


@pytest.mark.parametrize(
    ("step", "plan", "window", "inject", "probe"),
    [
        (1, SYNTHETIC, WINDOW, True, False),
        (1, REAL, WINDOW, False, False),
        (10, SYNTHETIC, WINDOW, False, True),
        (10, REAL, WINDOW, False, True),
        (1, SYNTHETIC, LAST, False, True),  # past it the state is dropped: its gradient is zero
        (1, REAL, LAST, False, True),
    ],
)
def test_the_decision(step: int, plan: StepPlan, window: Window, inject: bool, probe: bool) -> None:
    expected = WindowDecision(mode=plan.mode, inject=inject, probe=probe)
    assert RULE.decide(step, plan, window) == expected


@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize("window", [WINDOW, LAST])
def test_without_an_estimator_nothing_is_injected_or_probed(step: int, window: Window) -> None:
    rule = DecisionRule(probe_every=None)
    assert rule.decide(step, SYNTHETIC, window) == WindowDecision(mode=Mode.SYNTHETIC)


def test_a_cycle_that_was_ended_is_real_and_the_next_one_is_not() -> None:
    runaway = RunawayWatch(ended_cycle=1)
    assert RULE.decide(1, SYNTHETIC, WINDOW, runaway=runaway) == WindowDecision(mode=Mode.REAL)
    later = StepPlan(1.0, Mode.SYNTHETIC, 3)
    assert RULE.decide(1, later, WINDOW, runaway=runaway).inject
    assert followed_mode(later, runaway) is Mode.SYNTHETIC
    assert followed_mode(SYNTHETIC, None) is Mode.SYNTHETIC


def test_probes_come_regularly() -> None:
    probes = [step for step in range(40) if RULE.decide(step, REAL, WINDOW).probe]
    assert probes == [0, 10, 20, 30]


def test_probes_reach_every_boundary_of_a_stretch() -> None:
    rule = DecisionRule(probe_every=10, stretch=8)
    probes = [step for step in range(800) if rule.decide(step, REAL, WINDOW).probe]
    assert {step % 8 for step in probes} == set(range(8))
    assert len(probes) == pytest.approx(80, rel=0.1)
