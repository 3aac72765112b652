"""The decision on what happens at a window's end: inject, probe, gauge.

Whether a synthetic gradient is injected depends on the schedule's mode, on whether this cycle's
synthetic phase was ended as a runaway, on whether the window is a probe, and on whether the text
ends with it.
"""

import math
from dataclasses import dataclass

from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Window
from sglm.train.runaway import RunawayWatch


@dataclass(frozen=True, kw_only=True)
class WindowDecision:
    """The decision on what a training step does with its estimator of state gradients.

    Attributes:
        mode: The mode that is followed: that of the cycle, but real after a runaway.
        inject: Whether the estimate enters the backward pass at the window's end.
        probe: Whether the estimator is measured; if so, nothing is injected, whatever the mode.
        gauge: Whether the injected gradient is measured against the exact future.
    """

    mode: Mode
    inject: bool = False
    probe: bool = False
    gauge: bool = False


@dataclass(frozen=True, kw_only=True)
class DecisionRule:
    """The rule by which a run decides for each of its windows.

    Attributes:
        probe_every: Number of windows of which one is a probe. None: nothing is injected or probed.
        stretch: Number of windows whose coming text is read together.
        gauge_every: Number of windows from one measurement of the gauge to the next. None: no
            measurements.
        injects_once: Whether only the first window of a stretch is injected into.
    """

    probe_every: int | None
    stretch: int = 1
    gauge_every: int | None = None
    injects_once: bool = False

    def decide(
        self, step: int, plan: StepPlan, window: Window, *, runaway: RunawayWatch | None = None
    ) -> WindowDecision:
        """Returns the decision for one window: a pure function of its arguments.

        Args:
            step: The number of the step, counted from 0.
            plan: The schedule's plan for the step.
            window: The window to train on.
            runaway: The watch that records runaways. None: there was none.
        """
        mode = followed_mode(plan, runaway)
        if self.probe_every is None:
            return WindowDecision(mode=mode)
        # After the last window the state is dropped, so the true future gradient there is zero.
        probe = window.is_last or _is_due(step, self.probe_every, among=self.stretch)
        inject = mode is Mode.SYNTHETIC and not probe
        return WindowDecision(
            mode=mode,
            inject=inject,
            probe=probe,
            gauge=inject and self._gauges(step, window, self.probe_every),
        )

    def _gauges(self, step: int, window: Window, probe_every: int) -> bool:
        if self.gauge_every is None:
            return False
        # Measurements fall on every place of a stretch equally often, and not always on a probe,
        # where nothing is injected. They come half an interval early, so that short runs have one.
        among = math.lcm(self.stretch, probe_every)
        step += self.gauge_every // 2
        if not self.injects_once:
            return _is_due(step, self.gauge_every, among=among)
        # If one is due at any window of the stretch, it is made at the window injected into.
        first, after = (
            _shifted(each, self.gauge_every, among=among) - 1
            for each in (step, step + window.stretch)
        )
        return first // self.gauge_every < after // self.gauge_every


def _is_due(step: int, every: int, *, among: int) -> bool:
    """Returns true at one step in `every`, at all places of a pattern of `among` equally often."""
    return _shifted(step, every, among=among) % every == 0


def _shifted(step: int, every: int, *, among: int) -> int:
    """Returns the step, shifted so that the multiples of `every` fall on all places of a pattern.

    If `every` and the length of the pattern, `among`, have a common divisor, the multiples would
    miss some places: so the step shifts by one after each least common multiple of the two.
    """
    if math.gcd(among, every) > 1:
        step += step // math.lcm(among, every)
    return step


def followed_mode(plan: StepPlan, runaway: RunawayWatch | None) -> Mode:
    """Returns the mode that is followed: real for the rest of a cycle ended as a runaway."""
    ended = runaway is not None and plan.cycle == runaway.ended_cycle
    return Mode.REAL if ended else plan.mode
