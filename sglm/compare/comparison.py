"""Runs a grid of variants × seeds, one process after the other, and writes down its results."""

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

# The share of its time for which a run was ready but no core was free.
_BUSY = 0.1


def compare(
    comparison: Comparison, *, grid: Grid, execution: Execution, console: TextIO
) -> dict[str, Any]:
    """Trains every variant with every seed, or goes on with it; finished runs are not repeated.

    The result of a run is the validation perplexity at its end, not its best one: all end after
    the same number of updates, and nobody has picked the moment.

    Args:
        comparison: what they share; its `out` gets `runs/`, `results.json`, `table.md`,
            `curves.png`.
        grid: which runs, of variants that `prepare` has checked.
        execution: how they are made.
        console: for progress.

    Returns:
        What is in `results.json`: of all finished runs in `out`, those of other calls too.

    Raises:
        Stopped: asked to; the run at hand has saved a checkpoint.
        InputError, ConfigError: `out` holds something else, or runs of another comparison.
        SglmError: some runs failed; the others were made.
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
    finally:  # what was finished before a refusal counts
        finished = comparison.collect(finished)
        results = write_results(comparison, list(finished.values()))
    _print_gaps(grid.cells, finished, console)
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
    """What all runs share.

    Args:
        config: decides everything that the variants do not; its seed is not used.
        store: the corpus, with a validation split.
        out: the comparison's folder.
        variants: all of which are checked.
        horizon: None: that of the comparison that is in `out` already, or see `horizon_steps`.

    Raises:
        InputError, ConfigError: no validation split; a variant that does not go with the text or
            the configuration; `out` is no folder of a comparison.
    """
    store.counts("valid")  # an error with its cure where there is none
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
    """One run after the other.

    Args:
        comparison: what they share.
        own: all runs of this shard.
        finished: those that need not be made; gets those that are.
        execution: how they are made.
        console: for progress.

    Returns:
        `(the ones that failed, the signal that stopped it)`.
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
            later_seconds=_expected(waiting[number + 1 :], execution.expected_seconds),
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


def _expected(cells: Sequence[Cell], seconds: Mapping[str, float] | None) -> float | None:
    return None if seconds is None else sum(seconds[cell.variant] for cell in cells)


def check_precision(finished: dict[Cell, FinishedRun], wanted: str | None, out: Path) -> None:
    """
    Raises:
        ConfigError: rounding is not to be one of the things that are compared.
    """
    used = sorted({run.precision for run in finished.values()})
    other = [name for name in used if name != wanted] if wanted is not None else used[1:]
    if other:
        first = wanted if wanted is not None else used[0]
        raise ConfigError(
            f"{out}: holds runs that were trained in {other[0]}, not {first};"
            f" continue it with --precision {other[0]}, or give another --out"
        )


def _print_gaps(cells: Sequence[Cell], finished: dict[Cell, FinishedRun], console: TextIO) -> None:
    """Which runs are missing, and whether those there are can be compared in time and memory."""
    missing = [str(cell) for cell in cells if cell not in finished]
    if missing:
        _print_line(console, f"missing {len(missing)} of {len(cells)} runs: {', '.join(missing)}")
    if busy := [str(run.cell) for run in finished.values() if (run.waited or 0) > _BUSY]:
        which = f"{len(busy)} of {len(finished)} runs" if len(busy) > 3 else ", ".join(busy)
        _print_line(
            console, f"the machine was busy during {which}: times there are too long to compare"
        )
    if len(devices := sorted({run.device for run in finished.values()})) > 1:
        _print_line(
            console, f"runs on {' and '.join(devices)}: their times and memory do not compare"
        )


def _print_line(console: TextIO, text: str) -> None:
    print_while_open(f"{text}\n", console)
