"""Runs one cell of a comparison in a process of its own, `sglm.compare.worker`."""

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
    """How runs are made.

    Attributes:
        precision: in what types, and where.
        deterministic: see `sglm.runtime.device.make_deterministic`.
        stop_signal: the number of the signal that asked to stop, or None.
        expected_seconds: of a run by variant, to tell the time left; None: not known.
    """

    precision: Precision
    deterministic: bool = False
    stop_signal: StopSignal = lambda: None
    expected_seconds: Mapping[str, float] | None = None


class RunEnd(NamedTuple):
    """How a run ended; both are None where it was completed.

    Attributes:
        failure: why it failed.
        stopped_by: the signal that stopped it.
    """

    failure: str | None
    stopped_by: int | None


def worker_command(module: str) -> list[str]:
    """Runs one of sglm's modules, the one that is imported here.

    Without `-P` Python would look for it, and for all that it imports, in the current folder first.
    """
    return [sys.executable, "-P", "-m", module]


def run_in_process(
    comparison: Comparison,
    cell: Cell,
    execution: Execution,
    *,
    on_wait: Callable[[], None] = lambda: None,
) -> RunEnd:
    """Trains to the end of a run, or to a request to stop.

    Args:
        comparison, cell: which.
        execution: how.
        on_wait: called several times a second meanwhile.

    Raises:
        InputError: it was refused, for a reason that the other runs share.
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
        # In a session of its own: Ctrl-C at a terminal reaches this process alone, which passes it
        # on as SIGTERM, so that the run does not get it twice.
        process = subprocess.Popen(
            worker_command("sglm.compare.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            # Its messages and its log hold any text, whatever this process's streams can.
            encoding="utf-8",
            env={**os.environ, "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,
        )
    message, stopped_by = _wait(process, task.to_json(), execution.stop_signal, on_wait=on_wait)
    if process.returncode == 0:
        return RunEnd(None, None)
    # It was stopped by SIGTERM, whichever signal this process got.
    if stopped_by is not None and process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM):
        return RunEnd(None, stopped_by)
    message = message or _failure(process.returncode, log_path)
    if process.returncode == InputError.exit_code:
        raise InputError(message)
    return RunEnd(message, stopped_by)


def _lock_log(log: TextIO, stop_signal: StopSignal) -> int | None:
    """Waits until no other process is at this run: `None`, or the signal that asked to stop.

    A comparison that was killed leaves an orphan behind, which stops at its next step. Until then
    it holds the lock on its log, which it got with its stderr: it needs no file of its own, and no
    process can die without giving it back.
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
    """Hands over the task and waits for the end of the process; passes on a request to stop.

    Returns:
        `(what it printed, the signal that asked to stop)`.
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
    """Why a process failed that printed no message of its own."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"the process was ended by {name}" + (" (out of memory?)" if code == -9 else "")
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    printed = [line.strip() for line in lines if line.strip()]
    return f"{printed[-1] if printed else 'it printed no message'} (more in {log})"
