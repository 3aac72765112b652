"""The schedule: a pure function from the number of a step to learning rate, mode and cycle.

Cosine annealing with warm restarts (SGDR: Loshchilov & Hutter 2017, eq. 5). At each restart the
mode flips between real and synthetic (Shang & Zhang 2019, sec. 3). The schedule has no state, so a
resumed run follows the same one.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple


class Mode(Enum):
    """The kind of a cycle: real (nothing is injected) or synthetic (predictions are injected)."""

    REAL = "real"
    SYNTHETIC = "synthetic"

    @property
    def other(self) -> "Mode":
        return Mode.SYNTHETIC if self is Mode.REAL else Mode.REAL


class StepPlan(NamedTuple):
    """The plan of one step.

    Attributes:
        lr_factor: The factor of the peak learning rate.
        mode: The mode of its cycle.
        cycle: The number of its cycle, counted from 0.
        decays: Whether weights decay in it, if the run has weight decay.
    """

    lr_factor: float
    mode: Mode
    cycle: int
    decays: bool = True


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The cycles of a run, with their lengths and modes, and the course of the rate within them.

    Args:
        cycle_steps: Length of each cycle in steps.
        cycle_modes: Mode of each cycle.
        warmup_steps: Number of steps at the very start over which the rate rises linearly.
        final_factor: The rate at the end of each cycle's cosine, as a fraction of the peak.
        decay_until: Fraction of all steps after which weights do not decay (Bjorck et al. 2021).
    """

    cycle_steps: tuple[int, ...]
    cycle_modes: tuple[Mode, ...]
    warmup_steps: int = 0
    final_factor: float = 0.0
    decay_until: float = 1.0

    @cached_property
    def cycle_ends(self) -> tuple[int, ...]:
        """For each cycle, the step after its last one."""
        return tuple(accumulate(self.cycle_steps))

    @property
    def total_steps(self) -> int:
        return self.cycle_ends[-1]

    def at(self, step: int) -> StepPlan:
        """Returns the plan of a step, counted from 0.

        Raises:
            IndexError: The step is outside `0 … total_steps - 1`.
        """
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside the {self.total_steps} steps of the schedule")
        cycle = bisect_right(self.cycle_ends, step)
        length = self.cycle_steps[cycle]
        progress = (step - (self.cycle_ends[cycle] - length)) / length
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        factor = self.final_factor + (1 - self.final_factor) * cosine
        if step < self.warmup_steps:
            factor *= (step + 1) / self.warmup_steps
        return StepPlan(
            lr_factor=factor,
            mode=self.cycle_modes[cycle],
            cycle=cycle,
            decays=step < self.decay_until * self.total_steps,
        )


def make_schedule(
    cycle_lengths: Sequence[float],
    *,
    unit_steps: int,
    mode: str,
    start: str = "real",
    warmup_steps: int = 0,
    final_factor: float = 0.0,
    decay_until: float = 1.0,
) -> Schedule:
    """Makes a schedule from cycle lengths in any unit.

    Args:
        cycle_lengths: Length of each cycle in units.
        unit_steps: Number of steps in one unit: those of an epoch, or 1.
        mode: `"real"`, `"synthetic"` or `"alternating"`.
        start: Mode of the first cycle if `mode` is alternating.
        warmup_steps, final_factor, decay_until: See `Schedule`.
    """
    # The ends are rounded, not the lengths, so that rounding errors do not accumulate.
    ends = [max(1, round(total * unit_steps)) for total in accumulate(cycle_lengths)]
    steps = tuple(max(1, end - before) for end, before in zip(ends, [0, *ends[:-1]], strict=True))
    first = Mode(start if mode == "alternating" else mode)
    modes = tuple(
        first.other if mode == "alternating" and index % 2 else first for index in range(len(steps))
    )
    return Schedule(
        cycle_steps=steps,
        cycle_modes=modes,
        warmup_steps=warmup_steps,
        final_factor=final_factor,
        decay_until=decay_until,
    )
