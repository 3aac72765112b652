"""Curves for TensorBoard: one file of events a session, written in order, by nobody's thread.

torch's SummaryWriter writes from a thread of its own, where a full disk is a traceback, and names
files by the clock alone, so that one set back shuffles the sessions of a run.
"""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, scalar

from sglm.config import Config
from sglm.storage.durable import sync

_PREFIX = "events.out.tfevents."


class EventFile:
    """A new file in `folder`; readers hide what earlier files say of steps after `first_step`.

    Args:
        folder: of the run's curves; made if needed.
        first_step: steps done before this session.
        files_before: of the sessions that came to a checkpoint; what others left is removed, for
            it will be written again.

    Attributes:
        number: of this file among those of the run, from 1.

    Raises:
        OSError: here and in every method, the disk refuses.
    """

    def __init__(self, folder: Path, *, first_step: int, files_before: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # By name, as readers take them.
        files = sorted(folder.glob(f"{_PREFIX}*"))
        for path in files[files_before:]:
            path.unlink()
        kept = files[:files_before]
        self.number = len(kept) + 1
        stamp = max([int(time.time()), *(_stamp(path) + 1 for path in kept)])
        name = f"{_PREFIX}{stamp:010d}.{platform.node()}.{os.getpid()}.0"
        self._file = open(folder / name, "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        try:
            self._add(Event(file_version="brain.Event:2"))
            self._add(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))
            self.sync()
            sync(folder)
        except OSError:
            with suppress(OSError):  # it has been said once
                self.close()
            raise

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A point of a curve."""
        point: Any = scalar  # torch has no types for it
        self.summary(point(tag, value), step)

    def summary(self, summary: Any, step: int | None = None) -> None:
        """A record of TensorBoard's."""
        self._add(Event(summary=summary, step=step))

    def hyper_parameters(self, config: Config, metrics: dict[str, float]) -> None:
        """Every value of the configuration, for the HParams tab, beside those metrics.

        torch's SummaryWriter would open a second run for them; the same three records go here.
        """
        values = {
            f"{section}.{key}": value if isinstance(value, bool | int | float) else str(value)
            for section, keys in config.model_dump().items()
            for key, value in keys.items()
        }
        records: Any = hparams  # torch has no types for it
        for record in records(values, metrics):
            self.summary(record)

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """What was written so far can be read."""
        self._file.flush()

    def sync(self) -> None:
        """What was written so far survives a crash of the machine."""
        self.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def _stamp(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX).partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) <= 10 else 0
