"""The timer that says when a checkpoint is due."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

SHORTEST_SECONDS = 30.0
LARGEST_SHARE = 0.02


class SaveTimer:
    """A timer: a save is due 30 seconds after the last one, or later if saving takes long.

    Saving takes about 2 % of the time at most: the interval is fifty times as long as a save, if
    that is more than 30 s. A kill then costs at most a minute of training as long as a save takes
    up to 1.2 s, as it does for 120 MB (ten million weights with Adam's moments) on a common disk;
    720 MB took 4 to 7 s, and are saved every three to six minutes. A validation is not interrupted:
    the checkpoint follows it.
    """

    def __init__(self) -> None:
        self._ended = time.monotonic()
        self._took: deque[float] = deque(maxlen=2)

    def due(self) -> bool:
        """Returns whether a checkpoint is due."""
        # The shorter of the last two saves: a single one may have waited for a busy disk.
        interval = max(SHORTEST_SECONDS, min(self._took, default=0.0) / LARGEST_SHARE)
        return time.monotonic() - self._ended >= interval

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Times a save, for whatever reason it is made; the next interval begins after it."""
        started = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._took.append(self._ended - started)
