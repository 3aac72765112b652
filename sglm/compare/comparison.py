"""Runs a grid of variants × seeds, one process after the other, and writes its results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from sglm.compare.curves import draw
from sglm.compare.grid import Cell, Grid
from sglm.compare.process import Execution, run_in_process
from sglm.compare.progress import RunProgress
from sglm.compare.results import write_results, written_horizon
from sglm.compare.runs import Comparison, FinishedRun
from sglm.compare.variants import check_cycles, horizon_steps, prepare_base
from sglm.config import Config
from sglm.errors import ConfigError, SglmError, Stopped
from sglm.runtime.terminal import print_while_open
from sglm.text.store import TokenStore
from sglm.train.build import build_batcher, build_schedule

# The share of a run's time without a free core above which the machine counts as busy.
_BUSY_SHARE = 0.1


def compare(
    comparison: Comparison, *, grid: Grid, execution: Execution, console: TextIO
) -> dict[str, Any]:
    """Trains every variant with every seed; continues unfinished runs and skips finished ones.

    The result of a run is the validation perplexity at its end, not the best one: all runs end
    after the same number of updates, so the moment is not chosen by the result.

    Args:
        comparison: The settings that the runs share; its `out` gets `runs/`, `results.json`,
            `table.md` and `curves.png`.
        grid: The runs, of variants that `prepare` has checked.
        execution: How to make the runs.
        console: Stream for progress.

    Returns:
        The content of `results.json`, which is about all finished runs in `out`, including those of
        other calls.

    Raises:
        Stopped: A signal asked to stop; the run in progress has saved a checkpoint.
        InputError, ConfigError: `out` holds something else, or runs of another comparison.
        SglmError: Some runs failed; the others are finished.
    """
    out, finished = comparison.out, comparison.collect()
    own = grid.own_cells
    waiting = [cell for cell in own if cell not in finished]
    check_precision(finished, execution.precision.name if waiting else None, out)
    if len(waiting) < len(own):
        _print_line(console, f"{len(own) - len(waiting)} of {len(own)} runs are finished already")
    try:
        failures, stopped_by = _train(
            comparison, own, finished=finished, execution=execution, console=console
        )
    finally:  # runs that were finished before an error count
        finished = comparison.collect(finished)
        missing = [cell for cell in grid.cells if cell not in finished]
        results = write_results(comparison, list(finished.values()), missing=missing)
    if missing:
        names = ", ".join(map(str, missing))
        _print_line(console, f"missing {len(missing)} of {len(grid.cells)} runs: {names}")
    _print_warnings(finished, console)
    if stopped_by is not None:
        how = f"while {failures[0]} failed" if failures else "with everything saved"
        raise Stopped(
            f"stopped {how}, {len(finished)} runs finished; the same command continues",
            signal_number=stopped_by,
        )
    draw(list(finished.values()), out / "curves.png")
    if failures:
        raise SglmError(
            f"{len(failures)} of {len(own)} runs failed ({', '.join(failures)});"
            f" {out / 'table.md'} has the others; the same command tries again"
        )
    return results


def prepare(
    config: Config,
    store: TokenStore,
    out: Path,
    *,
    variants: tuple[str, ...],
    horizon: int | None = None,
) -> Comparison:
    """Returns the settings that all runs share, after checking them with every variant.

    Args:
        config: Configuration of everything that the variants do not set; its seed is not used.
        store: The corpus, with a validation split.
        out: Folder of the comparison.
        variants: Names of the variants to check.
        horizon: Long horizon in steps. None: that of the comparison already in `out`, otherwise the
            default of `horizon_steps`.

    Raises:
        InputError, ConfigError: There is no validation split, a variant does not fit the text or
            the configuration, or `out` is not the folder of a comparison.
    """
    store.counts("valid")  # without this split, raises an error that names the cure
    batcher = build_batcher(config, store)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    base = prepare_base(config, schedule.cycle_steps, batcher.steps_per_epoch)
    check_cycles(variants, base)
    if horizon is None:
        horizon = written_horizon(out)
    comparison = Comparison(
        base=base, store=store, out=out, horizon=horizon_steps(horizon, config.train.window)
    )
    for variant in variants:  # before the first run, not after it
        build_batcher(comparison.config(Cell(variant, 0)), store)
    return comparison


def _train(
    comparison: Comparison,
    own: Sequence[Cell],
    *,
    finished: dict[Cell, FinishedRun],
    execution: Execution,
    console: TextIO,
) -> tuple[list[str], int | None]:
    """Trains the unfinished runs of a shard, one after the other.

    Args:
        comparison: The settings that the runs share.
        own: All runs of this shard.
        finished: Finished runs, which are skipped; newly finished runs are added.
        execution: How to make the runs.
        console: Stream for progress.

    Returns:
        `(names of the failed runs, number of the signal that stopped the training or None)`.
    """
    failures: list[str] = []
    stopped_by = execution.stop_signal()
    waiting = [cell for cell in own if cell not in finished]
    for number, cell in enumerate(waiting):
        if stopped_by is not None:
            break
        title = f"[{own.index(cell) + 1}/{len(own)}] {cell}"
        _print_line(console, f"{title}: training → {comparison.folder(cell)}")
        progress = RunProgress(
            console,
            title=title,
            log=comparison.log_path(cell),
            later_seconds=_expected_seconds(waiting[number + 1 :], execution.expected_seconds),
        )
        failure, stopped_by = run_in_process(comparison, cell, execution, on_wait=progress.poll)
        progress.close()
        if failure is not None:
            failures.append(str(cell))
            _print_line(console, f"{title}: failed: {failure}")
        elif stopped_by is None:
            finished[cell] = run = comparison.collect(finished)[cell]
            result = f"{run.token_ppl[-1]:.5g} in {run.seconds:,.0f} s"
            _print_line(console, f"{title}: {result}")
            stopped_by = execution.stop_signal()
    return failures, stopped_by


def _expected_seconds(cells: Sequence[Cell], seconds: Mapping[str, float] | None) -> float | None:
    return None if seconds is None else sum(seconds[cell.variant] for cell in cells)


def check_precision(finished: dict[Cell, FinishedRun], precision: str | None, out: Path) -> None:
    """Checks that all runs have the same precision, so that rounding is not part of the comparison.

    Raises:
        ConfigError: Finished runs have different precisions, or another one than `precision`.
    """
    used = sorted({run.precision for run in finished.values()})
    other = [name for name in used if name != precision] if precision is not None else used[1:]
    if other:
        first = precision if precision is not None else used[0]
        raise ConfigError(
            f"{out}: holds runs that were trained in {other[0]}, not {first};"
            f" continue it with --precision {other[0]}, or give another --out"
        )


def _print_warnings(finished: dict[Cell, FinishedRun], console: TextIO) -> None:
    """Prints which times and memory cannot be compared."""
    if busy := [str(run.cell) for run in finished.values() if (run.waited or 0) > _BUSY_SHARE]:
        which = f"{len(busy)} of {len(finished)} runs" if len(busy) > 3 else ", ".join(busy)
        _print_line(
            console, f"the machine was busy during {which}: those times are too long to compare"
        )
    if len(devices := sorted({run.device for run in finished.values()})) > 1:
        _print_line(
            console, f"runs on {' and '.join(devices)}: their times and memory cannot be compared"
        )


def _print_line(console: TextIO, text: str) -> None:
    print_while_open(f"{text}\n", console)
