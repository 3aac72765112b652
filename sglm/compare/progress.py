"""How far the run at hand is, read from its log: which of how many, its step, the time left."""

import re
import time
from pathlib import Path
from typing import TextIO

from sglm.runtime.terminal import OverwrittenLine, duration

# As `ConsoleLog.progress` writes them away from a terminal.
_STEP = re.compile(rb"^(step [\d,]+/[\d,]+)  ([\d:]+) left", re.MULTILINE)
_TAIL_BYTES = 4096
_SECONDS_BETWEEN_LINES = 30.0


class RunProgress:
    """Follows one run: a line that is overwritten on a terminal, elsewhere one now and then.

    Args:
        console: where to.
        title: of the run.
        log: its log file, which may hold earlier sessions.
        later_seconds: of the runs after it, about; None: not known.
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
        """Shows what is new; costs next to nothing where nothing is."""
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
        """The line gives way to others."""
        self.line.clear()

    def _latest(self) -> re.Match[bytes] | None:
        """The last progress line of this session."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(self.size, end - _TAIL_BYTES))
                tail = file.read()
        except OSError:
            return None
        return max(_STEP.finditer(tail), key=re.Match.start, default=None)


def _seconds(text: str) -> float:
    """The inverse of `duration`."""
    seconds = 0
    for part in text.split(":"):
        seconds = 60 * seconds + int(part)
    return float(seconds)
