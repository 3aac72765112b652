"""The plan of a comparison: the runs that are left, and how long they will take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from sglm.compare.comparison import check_precision
from sglm.compare.curves import NOT_DRAWN
from sglm.compare.grid import Cell, Grid
from sglm.compare.process import Execution
from sglm.compare.runs import Comparison, FinishedRun
from sglm.compare.timing import seconds_of_runs
from sglm.runtime.terminal import duration, print_while_open
from sglm.storage.picture import can_draw
from sglm.train.build import store_shape

# Below both limits (updates, operations), all runs take little more time than timing them would.
SHORT_UPDATES, _SHORT_FLOP = 5000, 1e11


@dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """The runs that are left to make.

    Attributes:
        waiting: The runs, in order.
        finished: Number of runs of this shard that are finished already.
        updates: Number of updates of every run.
        seconds: Estimated time of a run, by variant. None: unknown.
        is_short: Whether all runs take so little time that nothing was timed.
    """

    waiting: Sequence[Cell]
    finished: int
    updates: int
    seconds: dict[str, float] | None
    is_short: bool = False

    @property
    def total_seconds(self) -> float | None:
        """The estimated time of all runs that are left, one after the other; None: unknown."""
        if self.seconds is None:
            return None
        return sum(self.seconds[cell.variant] for cell in self.waiting)

    def as_json(self) -> dict[str, Any]:
        """Returns the plan as plain values."""
        return {
            "runs": [{"variant": cell.variant, "seed": cell.seed} for cell in self.waiting],
            "finished": self.finished,
            "updates": self.updates,
            "seconds_per_run": self.seconds,
            "seconds": self.total_seconds,
            "draws": can_draw(),
        }

    def describe(self) -> str:
        """Describes the runs, how long they will take, and which result will be missing."""
        count = len(self.waiting)
        lines = [f"{count} run{'s' if count != 1 else ''} of {self.updates:,} updates to be made"]
        if self.finished:
            lines[0] += f", {self.finished} finished already"
        variants = list(dict.fromkeys(cell.variant for cell in self.waiting))
        width = max(map(len, variants), default=0)
        for variant in variants:
            seeds = ", ".join(str(cell.seed) for cell in self.waiting if cell.variant == variant)
            about = "" if self.seconds is None else f"  {duration(self.seconds[variant]):>8} a run"
            lines.append(f"  {variant:<{width}}{about}  seeds {seeds}")
        if self.is_short:
            lines.append("a matter of minutes: too short to be timed in advance")
        elif self.total_seconds is None:
            lines.append("how long they will take is not known: timing some steps failed")
        elif self.waiting:
            lines.append(
                f"about {duration(self.total_seconds)} in all, one after the other, according to"
                " finished runs or a few timed steps"
            )
        return "\n".join(lines if can_draw() else [*lines, NOT_DRAWN])


def plan_comparison(
    comparison: Comparison, grid: Grid, execution: Execution, *, console: TextIO
) -> ComparisonPlan:
    """Plans what is left; times come from finished runs of the same variant, or from a few steps.

    Args:
        comparison, grid: The runs.
        execution: How to make the runs.
        console: Stream for a line that says that steps are being timed.

    Raises:
        InputError, ConfigError: See `sglm.compare.comparison.compare`.
    """
    finished = comparison.collect()
    waiting = [cell for cell in grid.own_cells if cell not in finished]
    check_precision(finished, execution.precision.name if waiting else None, comparison.out)
    is_short = bool(waiting) and _is_short(comparison, len(waiting))
    return ComparisonPlan(
        waiting=waiting,
        finished=len(grid.own_cells) - len(waiting),
        updates=comparison.updates,
        seconds=None
        if is_short
        else _seconds(comparison, waiting, finished, execution=execution, console=console),
        is_short=is_short,
    )


def _is_short(comparison: Comparison, runs: int) -> bool:
    updates, train = runs * comparison.updates, comparison.base.train
    shape = store_shape(comparison.base, comparison.store)
    flop = 6 * shape.parameters * train.batch * train.window * updates
    return updates < SHORT_UPDATES and flop < _SHORT_FLOP


def _seconds(
    comparison: Comparison,
    waiting: Sequence[Cell],
    finished: dict[Cell, FinishedRun],
    *,
    execution: Execution,
    console: TextIO,
) -> dict[str, float] | None:
    """Estimates the time of a run, by variant; None: unknown."""
    configs = {cell.variant: comparison.config(cell) for cell in waiting}
    known = {variant: _mean_seconds(variant, finished) for variant in configs}
    seconds = {variant: mean for variant, mean in known.items() if mean is not None}
    unknown = {variant: config for variant, config in configs.items() if variant not in seconds}
    if not unknown:
        return seconds
    print_while_open(f"timing some steps: {', '.join(unknown)}\n", console)
    timed = seconds_of_runs(unknown, comparison.store, execution)
    return None if timed is None else {**seconds, **timed}


def _mean_seconds(variant: str, finished: dict[Cell, FinishedRun]) -> float | None:
    times = [run.seconds for run in finished.values() if run.variant == variant]
    return sum(times) / len(times) if times else None
