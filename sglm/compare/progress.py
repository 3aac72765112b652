"""Shows the progress of the current run, read from its log: its step and the time left."""

import re
import time
from pathlib import Path
from typing import TextIO

from sglm.runtime.terminal import OverwrittenLine, duration

# A progress line, as `ConsoleLog.progress` writes it if the stream is not a terminal.
_STEP = re.compile(rb"^(step [\d,]+/[\d,]+)  ([\d:]+) left", re.MULTILINE)
_TAIL_BYTES = 4096
_SECONDS_BETWEEN_LINES = 30.0


class RunProgress:
    """The progress of one run: a line that is overwritten on a terminal, elsewhere a line at times.

    Args:
        console: Stream that the lines go to.
        title: Title of the run.
        log: Log file of the run, which may also hold earlier sessions.
        later_seconds: Estimated time of the runs after this one. None: unknown.
    """

    def __init__(
        self, console: TextIO, *, title: str, log: Path, later_seconds: float | None
    ) -> None:
        self.line = OverwrittenLine(console)
        self.title = title
        self.log = log
        self.later_seconds = later_seconds
        self.size = log.stat().st_size if log.exists() else 0
        self.shown = b""
        self.printed_at = time.monotonic()

    def poll(self) -> None:
        """Shows new progress; costs next to nothing if there is none."""
        now = time.monotonic()
        if not self.line.on_terminal and now - self.printed_at < _SECONDS_BETWEEN_LINES:
            return
        latest = self._latest()
        if latest is None or latest.group() == self.shown:
            return
        self.shown, self.printed_at = latest.group(), now
        step, left = (part.decode() for part in latest.groups())
        text = f"{self.title}: {left} left"
        if self.later_seconds:
            text += f", of all runs {duration(self.later_seconds + _seconds(left))}"
        self.line.show(f"{text}, {step}")

    def close(self) -> None:
        """Clears the line."""
        self.line.clear()

    def _latest(self) -> re.Match[bytes] | None:
        """Returns the last progress line of this session, or None."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self.size, end - _TAIL_BYTES))
                tail = file.read()
        except OSError:
            return None
        return max(_STEP.finditer(tail), key=re.Match.start, default=None)


def _seconds(text: str) -> float:
    """Converts a duration back to seconds, the inverse of `duration`."""
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)
