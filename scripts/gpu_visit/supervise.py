"""Runs a part in a process of its own, under a time limit, and records its reports.

A part that exceeds its limit is killed with all its children, and the next part follows. If a cell
hangs (because programs of a kernel wait for each other for ever), its process is killed too, and
the rest of the part is tried in a new one. A part does not outlive this process, however that ends.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from scripts import ROOT
from scripts.gpu_visit.results import Results

CHILD = ["-m", "scripts.gpu_visit.child"]
_MOST_PROCESSES = 6  # of one part
_DONE, _OVER = "done", "over the limit of the part"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits in seconds: for the whole part, and from one line that it reports to the next."""

    part: float
    cell: float


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """The end of a process: its reason, the unfinished cell (if any), and the lines reported."""

    why: str
    cell: str | None
    lines: int


def run_part(part: str, told: dict[str, Any], limits: Limits, results: Results) -> None:
    """Takes the part's missing measurements.

    Args:
        part: Name of the part.
        told: The rest of the child's task; see `child`.
        limits: Limits of time.
        results: Receives the measurements. Cells that failed in this call are not tried again.
    """
    deadline, failed = time.monotonic() + limits.part, dict[str, Any]()
    for _ in range(_MOST_PROCESSES):
        left = deadline - time.monotonic()
        told = {**told, "part": part, "seconds": left, "earlier": results.of_part(part) | failed}
        ending = _run_once(told, limits, results, failed)
        if ending.cell is not None:
            failed[ending.cell] = {}
            _add(results, told, {"cell": ending.cell, "error": ending.why})
        elif ending.lines == 0 and ending.why != _DONE:  # a new process would get no further
            _add(results, told, {"cell": "start", "error": ending.why})
            return
        if ending.why in (_DONE, _OVER) or time.monotonic() >= deadline:
            return


def _run_once(
    told: dict[str, Any], limits: Limits, results: Results, failed: dict[str, Any]
) -> _Ending:
    deadline, cell, lines = time.monotonic() + told["seconds"], None, 0
    with results.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *CHILD],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    patience = 0.0
    try:
        process.stdin.write(json.dumps(told).encode() + b"\n")
        process.stdin.flush()  # and stays open: its end tells the child that this process is gone
        for line in _lines(process.stdout, deadline, limits.cell):
            if isinstance(line, str):
                return _Ending(why=line, cell=cell, lines=lines)
            lines, message = lines + 1, json.loads(line)
            if "done" in message:
                patience = 1.0
                return _Ending(why=_DONE, cell=None, lines=lines)
            cell = message.get("begins")
            if cell is None:
                if "error" in message:
                    failed[message["cell"]] = {}
                _add(results, told, message)
        patience = 10.0  # it is ending by itself, and its exit status is worth knowing
    finally:
        _end(process, patience)
    why = f"its process ended with {process.returncode}; see {results.log_path.name}"
    return _Ending(why=why, cell=cell, lines=lines)


def _add(results: Results, told: dict[str, Any], message: dict[str, Any]) -> None:
    rehearsal = {"rehearsal": True} if told["rehearsing"] else {}
    results.add({"part": told["part"], **message, **rehearsal})


def _lines(stream: IO[bytes], deadline: float, cell: float) -> Iterator[bytes | str]:
    """Yields lines until the end of the stream; if a limit comes first, a reason (str) is last."""
    descriptor, rest = stream.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        last = time.monotonic()
        while True:
            until = min(deadline, last + cell)
            if not selector.select(max(0.0, until - time.monotonic())):
                over = time.monotonic() >= deadline
                yield _OVER if over else f"over the limit of a cell, {cell:.0f} s"
                return
            read = os.read(descriptor, 2**16)
            if not read:
                return
            *lines, rest = (rest + read).split(b"\n")
            last = time.monotonic()
            yield from lines


def _end(process: "subprocess.Popen[bytes]", patience: float) -> None:
    """Waits `patience` seconds, then kills what is left of the process and its children."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=patience)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
