"""Shows the progress of the files of a corpus and the time left.

On a terminal this is a line that is overwritten, elsewhere a line at times.
"""

import time
from collections.abc import Sequence
from typing import TextIO

from sglm.runtime.terminal import OverwrittenLine, duration

_SECONDS_BETWEEN_LINES = {True: 0.5, False: 30.0}  # on a terminal, elsewhere


class CorpusProgress:
    """The progress of some files.

    Args:
        console: Stream that the lines go to.
        doing: Name of the work, with which a line starts.
        sizes: Sizes of the files in bytes.
    """

    def __init__(self, console: TextIO, *, doing: str, sizes: Sequence[int]) -> None:
        self.console = OverwrittenLine(console)
        self.doing = doing
        self.sizes = sizes
        self.shares = [0.0] * len(sizes)
        self.started = time.monotonic()
        self.shown_at = self.started

    def at(self, number: int, share: float) -> None:
        """Takes in the share of one file that is done."""
        self.shares[number] = share
        self.tick()

    def at_all(self, shares: Sequence[float]) -> None:
        """Takes in the share of every file that is done."""
        self.shares = list(shares)
        self.tick()

    def tick(self) -> None:
        """Shows the progress, if the last line is old enough."""
        now = time.monotonic()
        if now - self.shown_at >= _SECONDS_BETWEEN_LINES[self.console.on_terminal]:
            self.shown_at = now
            self.console.show(self.line(now))

    def line(self, now: float) -> str:
        """Returns the line to show."""
        total = sum(self.sizes) or 1
        done = sum(share * size for share, size in zip(self.shares, self.sizes, strict=True))
        done /= total
        left = "?" if done <= 0 else duration((now - self.started) * (1 - done) / done)
        finished = sum(share >= 1.0 for share in self.shares)
        return (
            f"{self.doing}  {100 * done:.1f} %  {left} left  {finished:,}/{len(self.sizes):,} files"
        )

    def close(self) -> None:
        """Clears the line."""
        self.console.clear()
