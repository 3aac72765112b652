"""Runs a grid of variants × seeds, one process after the other, and writes down what came out."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from sglm.compare.curves import draw
from sglm.compare.runs import Cell, Comparison, FinishedRun, grid, shard_of
from sglm.compare.statistics import summarize
from sglm.compare.table import table
from sglm.compare.variants import check_cycles, horizon_steps, prepare_base
from sglm.compare.worker import Task
from sglm.config import Config, plain_values
from sglm.errors import ConfigError, InputError, SglmError, Stopped
from sglm.optim.precision import Precision
from sglm.storage.durable import replace_text
from sglm.storage.untrusted import is_count, read_json
from sglm.text.store import TokenStore
from sglm.train.build import build_batcher, build_schedule
from sglm.train.log.console import print_while_open
from sglm.train.record import versions

_SECONDS_BETWEEN_POLLS = 0.1
_LARGEST_RESULTS_BYTES = 1 << 26


def compare(
    config: Config,
    store: TokenStore,
    out: Path,
    variants: Sequence[str],
    seeds: Sequence[int],
    device: torch.device,
    precision: Precision,
    console: TextIO,
    horizon: int | None = None,
    shard: tuple[int, int] = (1, 1),
    stop_signal: Callable[[], int | None] = lambda: None,
    deterministic: bool = False,
) -> dict[str, Any]:
    """Trains every variant with every seed, or goes on with it; finished runs are not repeated.

    The result of a run is the validation perplexity at its end, not its best one: all end after
    the same number of updates, and nobody has picked the moment.

    Args:
        config: decides everything that the variants do not; its seed is not used.
        store: the corpus, with a validation split.
        out: gets `runs/`, `results.json`, `table.md`, `curves.png`.
        variants: names in `VARIANTS`.
        seeds: of the runs.
        device, precision: where, and in what types.
        console: for progress.
        horizon: of the variants with a long one, in steps; None: see `horizon_steps`.
        shard: `(i, n)`: the i-th of n parts of the grid, counted from 1.
        stop_signal: the number of the signal that asked to stop, or None.
        deterministic: see `sglm.runtime.device.make_deterministic`.

    Returns:
        What is in `results.json`: of all finished runs in `out`, those of other calls too.

    Raises:
        Stopped: asked to; the run at hand has saved a checkpoint.
        InputError, ConfigError: no validation split; a variant that is none here; `out` holds
            something else, or runs of another comparison.
        SglmError: some runs failed; the others were made.
    """
    comparison = prepare(config, store, out, tuple(variants), horizon)
    cells = grid(variants, seeds)
    mine = shard_of(cells, *shard)
    finished = comparison.collect()
    waiting = [cell for cell in mine if cell not in finished]
    _check_precision(finished, precision.name if waiting else None, out)
    if len(waiting) < len(mine):
        _say(console, f"{len(mine) - len(waiting)} of {len(mine)} runs are finished already")
    failures, stopped_by = _train(
        comparison, mine, waiting, device, precision, console, stop_signal, deterministic
    )
    finished = comparison.collect()
    results = write_results(comparison, list(finished.values()))
    _tell_what_lacks(cells, finished, console)
    if stopped_by is not None:
        how = f"while {failures[0]} failed" if failures else "with everything saved"
        raise Stopped(
            f"stopped {how}, {len(finished)} runs finished; the same command continues",
            signal_number=stopped_by,
        )
    draw(list(finished.values()), out / "curves.png", console)
    if failures:
        raise SglmError(
            f"{len(failures)} of {len(mine)} runs failed ({', '.join(failures)});"
            f" {out / 'table.md'} has the others; the same command tries again"
        )
    return results


def prepare(
    config: Config, store: TokenStore, out: Path, variants: tuple[str, ...], horizon: int | None
) -> Comparison:
    """What all runs share.

    Raises:
        InputError, ConfigError: see `compare`.
    """
    store.counts("valid")  # says what to do where there is none
    batcher = build_batcher(config, store)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    base = prepare_base(config, schedule.cycle_steps, batcher.steps_per_epoch)
    check_cycles(variants, base)
    if horizon is None:
        horizon = _horizon_before(out)
    return Comparison(base, store, out, horizon_steps(horizon, config.train.window))


def _horizon_before(out: Path) -> int | None:
    """The horizon of the comparison that is in `out` already: left out, it stays what it was."""
    try:
        horizon = read_json(out / "results.json", _LARGEST_RESULTS_BYTES)["horizon"]
    except (OSError, ValueError, LookupError, TypeError, InputError):
        return None
    return horizon if is_count(horizon) else None


def write_results(comparison: Comparison, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """`results.json` and `table.md`."""
    results = {
        "variants": summarize(runs),
        "updates": comparison.updates,
        "horizon": comparison.horizon,
        "config": plain_values(comparison.base),
        "data": {
            "folder": str(comparison.store.folder),
            "fingerprint": comparison.store.fingerprint,
        },
        "versions": versions(comparison.store.tokenizer().kind),
    }
    comparison.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    replace_text(comparison.out / "results.json", text + "\n")
    replace_text(comparison.out / "table.md", table(results) + "\n")
    return results


def _train(
    comparison: Comparison,
    mine: Sequence[Cell],
    waiting: Sequence[Cell],
    device: torch.device,
    precision: Precision,
    console: TextIO,
    stop_signal: Callable[[], int | None],
    deterministic: bool,
) -> tuple[list[str], int | None]:
    """One run after the other: `(the ones that failed, the signal that stopped it)`."""
    failures: list[str] = []
    stopped_by = stop_signal()
    for cell in waiting:
        if stopped_by is not None:
            break
        number = f"[{mine.index(cell) + 1}/{len(mine)}] {cell}"
        _say(console, f"{number}: training → {comparison.folder(cell)}")
        failure, stopped_by = _run(comparison, cell, device, precision, stop_signal, deterministic)
        if failure is not None:
            failures.append(str(cell))
            _say(console, f"{number}: failed: {failure}")
        elif stopped_by is None:
            _say(console, f"{number}: {_result(comparison, cell)}")
            stopped_by = stop_signal()
    return failures, stopped_by


def _run(
    comparison: Comparison,
    cell: Cell,
    device: torch.device,
    precision: Precision,
    stop_signal: Callable[[], int | None],
    deterministic: bool,
) -> tuple[str | None, int | None]:
    """One run in a process of its own: `(why it failed, the signal that stopped it)`.

    Raises:
        InputError: it was refused, for a reason that the other runs share.
    """
    comparison.folder(cell).parent.mkdir(parents=True, exist_ok=True)
    task = Task(
        config=plain_values(comparison.config(cell)),
        data=str(comparison.store.folder),
        run=str(comparison.folder(cell)),
        record=str(comparison.record_path(cell)),
        device=device.type,
        precision=precision.name,
        parent=os.getpid(),
        deterministic=deterministic,
    )
    if comparison.log_path(cell).is_symlink():
        raise InputError(f"{comparison.log_path(cell)}: a link; remove it")
    with open(comparison.log_path(cell), "a", encoding="utf-8") as log:
        if (stopped_by := _wait_for_the_log(log, stop_signal)) is not None:
            return None, stopped_by
        # In a session of its own: Ctrl-C at a terminal reaches this process alone, which passes it
        # on as SIGTERM, so that the run does not hear it twice.
        process = subprocess.Popen(
            [sys.executable, "-m", "sglm.compare.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    message, stopped_by = _converse(process, task.to_json(), stop_signal)
    if process.returncode == 0:
        return None, None
    # It was asked to stop by SIGTERM, whatever this process was asked by.
    if stopped_by is not None and process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return None, stopped_by
    message = message or _last_words(process.returncode, comparison.log_path(cell))
    if process.returncode == InputError.exit_code:
        raise InputError(message)
    return message, stopped_by


def _wait_for_the_log(log: TextIO, stop_signal: Callable[[], int | None]) -> int | None:
    """Waits until no other process is at this run: `None`, or the signal that asked to stop.

    A comparison that was killed leaves an orphan behind, which stops at its next step. Until then
    it holds the lock on its log, which it got with its stderr: it needs no file of its own, and no
    process can die without giving it back.
    """
    while True:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if (number := stop_signal()) is not None:
                return number
            time.sleep(_SECONDS_BETWEEN_POLLS)
        except OSError:
            return None  # a file system without locks
        else:
            return None


def _converse(
    process: "subprocess.Popen[str]", task: str, stop_signal: Callable[[], int | None]
) -> tuple[str, int | None]:
    """Hands over the task and waits; passes on a request to stop."""
    stopped_by = None
    given: str | None = task
    while True:
        try:
            message, _ = process.communicate(given, timeout=_SECONDS_BETWEEN_POLLS)
            return message.strip(), stopped_by
        except subprocess.TimeoutExpired:
            given = None
        except BaseException:
            process.terminate()
            raise
        if stopped_by is None and (stopped_by := stop_signal()) is not None:
            process.terminate()


def _last_words(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (" (out of memory?)" if code == -9 else "")
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return f"{said[-1].strip() if said else 'without a word'} (more in {log})"


def _result(comparison: Comparison, cell: Cell) -> str:
    run = comparison.collect()[cell]
    return f"{run.token_ppl[-1]:.5g} in {run.seconds:,.0f} s"


def _check_precision(finished: dict[Cell, FinishedRun], wanted: str | None, out: Path) -> None:
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


def _tell_what_lacks(
    cells: Sequence[Cell], finished: dict[Cell, FinishedRun], console: TextIO
) -> None:
    missing = [str(cell) for cell in cells if cell not in finished]
    if missing:
        _say(console, f"missing {len(missing)} of {len(cells)} runs: {', '.join(missing)}")
    if len(devices := sorted({run.device for run in finished.values()})) > 1:
        _say(console, f"runs on {' and '.join(devices)}: their times and memory do not compare")


def _say(console: TextIO, text: str) -> None:
    print_while_open(f"{text}\n", console)
