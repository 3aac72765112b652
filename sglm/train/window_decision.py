"""What happens at a window's end: the one decision, from all that bears on it.

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
    """What a training step is to do with its estimator of state gradients.

    Attributes:
        mode: the kind of gradient of the cycle, as it is followed: real after a runaway.
        inject: the estimate enters the backward pass at the window's end.
        probe: nothing is injected, whatever the mode, and the estimator is measured.
        gauge: what is injected is measured against the exact future.
    """

    mode: Mode
    inject: bool = False
    probe: bool = False
    gauge: bool = False


@dataclass(frozen=True, kw_only=True)
class DecisionRule:
    """How a run decides for its windows.

    Attributes:
        probe_every: one window in so many is a probe; None: there is no estimator to inject from.
        stretch: windows that the estimator reads for at once.
        gauge_every: windows from one measurement of the gauge to the next; None: none are made.
        injects_once: of a stretch, at its first window alone.
    """

    probe_every: int | None
    stretch: int = 1
    gauge_every: int | None = None
    injects_once: bool = False

    def decide(
        self, step: int, plan: StepPlan, window: Window, *, runaway: RunawayWatch | None = None
    ) -> WindowDecision:
        """The decision for one window: a pure function of its arguments.

        Args:
            step: number of the step, from 0.
            plan: of the step, by the schedule.
            window: that is trained on.
            runaway: what is known of runaways; None: there was none.
        """
        mode = followed_mode(plan, runaway)
        if self.probe_every is None:
            return WindowDecision(mode=mode)
        # Past the last window the state is dropped, so the true future gradient there is zero.
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
        # At every place of a stretch equally often, and not always on a probe, where nothing is
        # injected. Half an interval early, so that short runs have a measurement too.
        among = math.lcm(self.stretch, probe_every)
        step += self.gauge_every // 2
        if not self.injects_once:
            return _is_due(step, self.gauge_every, among=among)
        # Where it is due at one of the stretch's windows, at the one that is injected into.
        first, after = (
            _shifted(each, self.gauge_every, among=among) - 1
            for each in (step, step + window.stretch)
        )
        return first // self.gauge_every < after // self.gauge_every


def _is_due(step: int, every: int, *, among: int) -> bool:
    """One step in `every`, and of a pattern of `among` steps every place equally often."""
    return _shifted(step, every, among=among) % every == 0


def _shifted(step: int, every: int, *, among: int) -> int:
    """Where `every` and a pattern of `among` steps have a common divisor, one step in `every` would
    never fall on some places of the pattern: so it shifts by one whenever both have come round."""
    if math.gcd(among, every) > 1:
        step += step // math.lcm(among, every)
    return step


def followed_mode(plan: StepPlan, runaway: RunawayWatch | None) -> Mode:
    """The mode that is followed: real for the rest of a cycle that was ended as a runaway."""
    ended = runaway is not None and plan.cycle == runaway.ended_cycle
    return Mode.REAL if ended else plan.mode
