"""Makes one run of a comparison, in its own process, so that peak memory is that of the run.

`python -m sglm.compare.worker` reads a `Task` as JSON from stdin. Progress goes to stderr, the
message of an error to stdout.
"""

import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sglm.compare.runs import Record
from sglm.config import parse_config
from sglm.errors import SglmError, as_sglm_error
from sglm.optim.precision import make_precision
from sglm.runtime.device import make_deterministic
from sglm.runtime.process import prepare_process
from sglm.text.store import TokenStore
from sglm.train.loop import Outcome, train


@dataclass(frozen=True, kw_only=True)
class Task:
    """A run to make: plain values, which are sent to the process as JSON."""

    config: dict[str, Any]
    data: str
    run: str
    record: str
    device: str
    precision: str
    deterministic: bool = False
    parent: int | None = None
    """The id of the process that waits for the run; None: the one that started this process."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class WorkerStopRequest:
    """A request to stop: SIGTERM, or the end of the parent process, after which nothing else could
    stop this one.

    Args:
        parent: Id of the parent process. None: the current parent. (The original one may have died
            while this process was importing torch.)
    """

    def __init__(self, parent: int | None = None) -> None:
        self.parent = os.getppid() if parent is None else parent
        self.received: int | None = None
        signal.signal(signal.SIGTERM, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number

    def signal_number(self) -> int | None:
        return signal.SIGTERM if os.getppid() != self.parent else self.received


def perform(task: Task, stop_request: WorkerStopRequest) -> None:
    """Trains until the end or until asked to stop, and records the cost.

    Raises:
        SglmError: See `sglm.train.loop.train`.
    """
    store, device = TokenStore.open(task.data), torch.device(task.device)
    if task.deterministic:
        make_deterministic(device)
    outcome, clock = None, WaitingClock()
    try:
        outcome = train(
            parse_config(task.config, task.run),
            store,
            Path(task.run),
            precision=make_precision(task.precision, device),
            console=sys.stderr,
            stop_signal=stop_request.signal_number,
        )
    finally:
        if Path(task.run).exists():
            before = Record.read(Path(task.record))
            write_record(task, outcome, before, waited=clock.share())


def write_record(
    task: Task, outcome: Outcome | None, before: Record | None, *, waited: float | None = None
) -> None:
    """Writes the record of this session and earlier ones; `outcome` is None if it was cut short."""
    peaks = [before.peak_memory_mb] if before is not None else []
    shares = [before.waited] if before is not None else []
    if outcome is None or not outcome.already_finished:
        peaks.append(peak_memory_mb(torch.device(task.device)))
        shares.append(waited)
    Record(
        finished=outcome is not None,
        seconds=0.0 if outcome is None else round(outcome.seconds, 3),
        peak_memory_mb=max((peak for peak in peaks if peak is not None), default=None),
        device=task.device,
        precision=task.precision,
        waited=max((share for share in shares if share is not None), default=None),
    ).write(Path(task.record))


class WaitingClock:
    """A measure of how busy the machine is with other processes, since this object was made."""

    def __init__(self) -> None:
        self.started, self.waited = time.monotonic(), _waited_seconds()

    def share(self) -> float | None:
        """Returns the share of the time for which the main thread was ready to run but no core was
        free; None if the system does not report it."""
        waited = _waited_seconds()
        if waited is None or self.waited is None:
            return None
        return round((waited - self.waited) / max(time.monotonic() - self.started, 1e-9), 4)


def _waited_seconds() -> float | None:
    try:
        ran, waited, _ = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
        return int(waited) / 1e9 if int(ran) else None  # all zeros if Linux does not count
    except (OSError, ValueError):
        return None


def peak_memory_mb(device: torch.device) -> float:
    """Returns the peak memory of this process so far, in 10⁶ bytes: of torch's tensors on CUDA, of
    the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        # On Linux a child inherits ru_maxrss from its parent, even through exec, but not VmHWM.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    except (OSError, LookupError, ValueError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main() -> int:
    """Makes the run, and returns the exit code, which is as on the command line."""
    prepare_process()
    task_json = sys.stdin.read()
    if not task_json:
        return 1  # the parent process was killed before it sent a task
    task = Task(**json.loads(task_json))
    try:
        perform(task, WorkerStopRequest(task.parent))
    except (SglmError, OSError, MemoryError, RuntimeError) as error:
        translated = error if isinstance(error, SglmError) else as_sglm_error(error)
        if translated is None:
            raise
        try:
            print(translated, flush=True)
        except BrokenPipeError:  # the parent process has died
            print(translated, file=sys.stderr, flush=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        return translated.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
