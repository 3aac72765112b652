"""Output for people who watch: a line that is overwritten on a terminal, lines elsewhere."""

import os
from contextlib import suppress
from typing import TextIO

PLAIN_COLUMNS = 80
ERASE_LINE = "\r\x1b[2K"


class OverwrittenLine:
    """A line of which each text overwrites the one before; elsewhere than on a terminal, a line for
    each text.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.on_terminal = is_terminal(stream)

    def show(self, text: str) -> None:
        """Shows a text in place of the previous one; cut off where a terminal might wrap it."""
        if self.on_terminal:
            print_while_open(f"{ERASE_LINE}{text[: PLAIN_COLUMNS - 1]}", self.stream)
        else:
            print_while_open(f"{text}\n", self.stream)

    def clear(self) -> None:
        """Erases the line, so that other lines can follow."""
        if self.on_terminal:
            print_while_open(ERASE_LINE, self.stream)


def print_while_open(text: str, stream: TextIO) -> None:
    """Prints a text, and ignores errors: a closed terminal, or a pipe whose reader has gone, must
    not end a computation of days."""
    with suppress(OSError, ValueError):  # ValueError: the stream itself is closed
        print(text, end="", file=stream, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Returns whether the stream is a terminal that can move its cursor."""
    with suppress(OSError, ValueError):
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    return False


def duration(seconds: float) -> str:
    """Formats a duration as `m:ss`, or as `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
