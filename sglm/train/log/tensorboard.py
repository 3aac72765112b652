"""The curves for TensorBoard: one event file for each session, written in order, without a thread.

torch's SummaryWriter writes from a thread of its own, in which a full disk causes a traceback. It
also names files by the clock alone, so that a clock set back shuffles the sessions of a run.
"""

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, Summary, SummaryMetadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams

from sglm.config import Config
from sglm.storage.durable import errors_naming, sync
from sglm.train.log.tags import description

_PREFIX = "events.out.tfevents."


class EventFile:
    """A new event file. Readers hide what earlier files contain on steps after `first_step`.

    Args:
        folder: The folder of the run's curves, created if needed.
        first_step: Number of steps done before this session.
        files_before: Number of files of the sessions that the checkpoint counts. Later files are
            deleted, because their steps will be repeated.

    Attributes:
        number: The number of this file among those of the run, counted from 1.

    Raises:
        OSError: Writing failed, here or in any method.
    """

    def __init__(self, folder: Path, *, first_step: int, files_before: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        files = event_files(folder)
        for path in files[files_before:]:
            path.unlink()
        kept = files[:files_before]
        self.number = len(kept) + 1
        stamp = max([int(time.time()), *(_stamp(path) + 1 for path in kept)])
        name = f"{_PREFIX}{stamp:010d}.{platform.node()}.{os.getpid()}.0"
        self._described: set[str] = set()
        self._path = folder / name
        self._file = open(self._path, "xb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        try:
            self._add(Event(file_version="brain.Event:2"))
            self._add(Event(step=first_step + 1, session_log=SessionLog(status=SessionLog.START)))
            self.sync()
            sync(folder)
        except OSError:
            with suppress(OSError):  # the first error is raised
                self.close()
            raise

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Adds a point to one of the curves of `sglm.train.log.tags`."""
        # Readers take a curve's metadata from its first point.
        metadata = None if tag in self._described else _curve_metadata(tag)
        self._described.add(tag)
        self._add(
            Event(
                summary=Summary(
                    value=[Summary.Value(tag=tag, simple_value=value, metadata=metadata)]
                ),
                step=step,
            )
        )

    def text(self, tag: str, markdown: str, step: int) -> None:
        """Adds a text for the Text tab."""
        record: Any = text_pb(tag, markdown, description=description(tag))
        self._add(Event(summary=record, step=step))

    def hyper_parameters(self, config: Config) -> None:
        """Adds the settings that most often distinguish runs, for the HParams tab.

        They are the same for every run, because TensorBoard takes the columns from one of them, and
        no more than fit a window beside the best perplexity. The seed is a text, because a number
        would be shown with decimals. torch's SummaryWriter would open a second run for them; here
        the same three records go into this file.
        """
        synthesizer = config.synthesizer
        values = {
            "mode": config.schedule.mode,
            "synthesizer": synthesizer.kind,
            "learning rate": config.optimizer.learning_rate,
            "seed": str(config.train.seed),
        }
        if synthesizer.inject != "prediction":
            values["synthesizer"] = f"{synthesizer.kind}, {synthesizer.inject}"
        if config.schedule.mode == "real":
            values["synthesizer"] = "none"
        records: Any = hparams  # torch has no types for it
        for record in records(values, {"fit/best_ppl": 0.0}):
            self._add(Event(summary=record))

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        with errors_naming(self._path):
            self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Makes everything written so far visible to readers."""
        with errors_naming(self._path):
            self._file.flush()

    def sync(self) -> None:
        """Waits until everything written so far would survive a crash of the machine."""
        self.flush()
        with errors_naming(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def event_files(folder: Path) -> list[Path]:
    """Returns the event files of all sessions in the order of readers, by name: the latest last."""
    return sorted(folder.glob(f"{_PREFIX}*"))


def _curve_metadata(tag: str) -> SummaryMetadata:
    metadata: Any = create_summary_metadata(display_name=None, description=description(tag))
    metadata.data_class = DATA_CLASS_SCALAR  # without it, the faster of two readers drops the rest
    return metadata


def _stamp(path: Path) -> int:
    digits = path.name.removeprefix(_PREFIX).partition(".")[0]
    return int(digits) if digits.isdecimal() and len(digits) <= 10 else 0
