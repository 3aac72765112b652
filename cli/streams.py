"""Prepares the standard streams, which may be closed, or have an encoding that lacks most
characters."""

import codecs
import io
import os
import sys
from contextlib import nullcontext, suppress
from typing import TextIO

import typer


def prepare_streams() -> None:
    """Makes stdout and stderr accept any text.

    A character that a stream's encoding lacks is written as an escape (`\\u2014`); JSON is ASCII
    anyway. A closed stream discards its output, like /dev/null, and so does a stderr whose reader
    has ended, because a message must not end the work. A closed stdin stays closed: the code that
    reads it reports this.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # /dev/null takes this number, the lowest free one. Otherwise the next file that is
            # opened, a model perhaps, would get it, and warnings would be written into that file.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _any_text(sys.stdout, drops=False)
    sys.stderr = _any_text(sys.stderr, drops=True)


def _any_text(stream: TextIO | None, drops: bool) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if drops or codecs.lookup(stream.encoding).name == "ascii":
        return _AnyText(stream, drops=drops)
    stream.reconfigure(errors="backslashreplace")
    return stream


class _AnyText(io.TextIOWrapper):
    """A stream that takes the place of another and writes any text.

    Args:
        stream: The stream to replace; it is detached.
        drops: Whether text that cannot be written is dropped instead of raising an error.
    """

    def __init__(self, stream: io.TextIOWrapper, *, drops: bool) -> None:
        encoding, line_buffering = stream.encoding, stream.line_buffering
        super().__init__(
            stream.detach(),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=line_buffering,
        )
        self._drops = drops

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding, but Latin-1 for ASCII: Typer takes ASCII for a mistake and writes UTF-8."""
        name = super().encoding
        return "latin-1" if codecs.lookup(name).name == "ascii" else name

    def write(self, text: str) -> int:
        with suppress(OSError) if self._drops else nullcontext():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError) if self._drops else nullcontext():
            super().flush()


def drop_full_stdout() -> None:
    """Drops the buffered output if stdout fails, as it would fail again at the end of the process.

    To be called after an error of the file system.
    """
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def announce_terminal() -> None:
    """Prints a note if text is about to be read from a terminal: a command that waits silently
    looks as if it hung."""
    with suppress(AttributeError, ValueError):  # stdin is closed
        if sys.stdin.isatty():
            typer.echo("reading text from the terminal, line by line; Ctrl-D ends it", err=True)
