"""What is shown to whoever watches: a line that is written over on a terminal, lines elsewhere."""

import os
from contextlib import suppress
from typing import TextIO

PLAIN_COLUMNS = 80
ERASE_LINE = "\r\x1b[2K"


class OverwrittenLine:
    """On a terminal, one line for all that is shown, one after the other; elsewhere a line each.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.on_terminal = is_terminal(stream)

    def show(self, text: str) -> None:
        """In place of what was shown before; cut where a terminal might wrap it."""
        if self.on_terminal:
            print_while_open(f"{ERASE_LINE}{text[: PLAIN_COLUMNS - 1]}", self.stream)
        else:
            print_while_open(f"{text}\n", self.stream)

    def clear(self) -> None:
        """The line gives way to others."""
        if self.on_terminal:
            print_while_open(ERASE_LINE, self.stream)


def print_while_open(text: str, stream: TextIO) -> None:
    """Prints, unless nobody can read it: a terminal that was closed, or a pipe whose reader has
    gone, must not end what takes days."""
    with suppress(OSError, ValueError):  # ValueError: the stream itself is closed
        print(text, end="", file=stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether somebody watches there, on a terminal that can move its cursor."""
    with suppress(OSError, ValueError):
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    return False


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
