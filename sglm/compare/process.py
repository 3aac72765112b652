"""Runs one cell of a comparison in its own process, `sglm.compare.worker`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from sglm.compare.grid import Cell
from sglm.compare.runs import Comparison
from sglm.compare.worker import Task
from sglm.config import plain_values
from sglm.errors import InputError
from sglm.optim.precision import Precision
from sglm.storage.durable import try_lock

_SECONDS_BETWEEN_POLLS = 0.1

StopSignal = Callable[[], int | None]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The way in which runs are made.

    Attributes:
        precision: Number types and device.
        deterministic: See `sglm.runtime.device.make_deterministic`.
        stop_signal: Function that returns the number of the signal that asked to stop, or None.
        expected_seconds: Estimated time of a run, by variant, for the time left. None: unknown.
    """

    precision: Precision
    deterministic: bool = False
    stop_signal: StopSignal = lambda: None
    expected_seconds: Mapping[str, float] | None = None


class RunEnd(NamedTuple):
    """The end of a run; both attributes are None if it was completed.

    Attributes:
        failure: Why it failed, or None.
        stopped_by: Number of the signal that asked to stop, or None.
    """

    failure: str | None
    stopped_by: int | None


def worker_command(module: str) -> list[str]:
    """Returns the command that runs a module of the sglm that is imported here.

    Without `-P`, Python would look in the current folder first, for the module and its imports.
    """
    return [sys.executable, "-P", "-m", module]


def run_in_process(
    comparison: Comparison,
    cell: Cell,
    execution: Execution,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> RunEnd:
    """Trains one run until it ends or is asked to stop.

    Args:
        comparison, cell: The run.
        execution: How to make the run.
        on_wait: Called several times a second until then.

    Raises:
        InputError: The run was refused, for a reason that applies to the other runs too.
    """
    comparison.folder(cell).parent.mkdir(parents=True, exist_ok=True)
    task = Task(
        config=plain_values(comparison.config(cell)),
        data=str(comparison.store.folder),
        run=str(comparison.folder(cell)),
        record=str(comparison.record_path(cell)),
        device=execution.precision.device.type,
        precision=execution.precision.name,
        parent=os.getpid(),
        deterministic=execution.deterministic,
    )
    log_path = comparison.log_path(cell)
    if log_path.is_symlink():
        raise InputError(f"{log_path}: a link; remove it")
    with open(log_path, "a", encoding="utf-8") as log:
        if (stopped_by := _lock_log(log, execution.stop_signal)) is not None:
            return RunEnd(None, stopped_by)
        # The run gets its own session: Ctrl-C at a terminal reaches only this process, which passes
        # it on as SIGTERM, so that the run does not get it twice.
        process = subprocess.Popen(
            worker_command("sglm.compare.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Its messages and its log may hold any text, whatever the encoding of this process.
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
    message, stopped_by = _wait(process, task.to_json(), execution.stop_signal, on_wait=on_wait)
    if process.returncode == 0:
        return RunEnd(None, None)
    # The run was stopped by SIGTERM, whichever signal this process received.
    if stopped_by is not None and process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return RunEnd(None, stopped_by)
    message = message or _failure(process.returncode, log_path)
    if process.returncode == InputError.exit_code:
        raise InputError(message)
    return RunEnd(message, stopped_by)


def _lock_log(log: TextIO, stop_signal: StopSignal) -> int | None:
    """Waits until no other process makes this run; returns None, or the signal that asked to stop.

    A killed comparison leaves an orphan behind, which stops at its next step. Until then the orphan
    holds the lock on its log, which it inherited as its stderr: this needs no extra file, and the
    lock is released however the process ends.
    """
    while try_lock(log) is False:
        if (number := stop_signal()) is not None:
            return number
        time.sleep(_SECONDS_BETWEEN_POLLS)
    return None


def _wait(
    process: "subprocess.Popen[str]",
    task: str,
    stop_signal: StopSignal,
    *,
    on_wait: Callable[[], None],
) -> tuple[str, int | None]:
    """Hands over the task, waits for the end of the process, and passes on a request to stop.

    Returns:
        `(text that the process printed, number of the signal that asked to stop or None)`.
    """
    stopped_by = None
    stdin: str | None = task
    while True:
        try:
            message, _ = process.communicate(stdin, timeout=_SECONDS_BETWEEN_POLLS)
            return message.strip(), stopped_by
        except subprocess.TimeoutExpired:
            stdin = None
            on_wait()
        except BaseException:
            process.terminate()
            raise
        if stopped_by is None and (stopped_by := stop_signal()) is not None:
            process.terminate()


def _failure(code: int, log: Path) -> str:
    """Explains why a process failed that printed no message."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (" (out of memory?)" if code == -9 else "")
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    printed = [line.strip() for line in lines if line.strip()]
    return f"{printed[-1] if printed else 'it printed no message'} (more in {log})"
