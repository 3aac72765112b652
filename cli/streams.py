"""The standard streams as the shell hands them over: closed, or of an encoding that lacks most
characters."""

import codecs
import io
import os
import sys
from contextlib import nullcontext, suppress
from typing import TextIO

import typer


def prepare_streams() -> None:
    """From here on stdout and stderr take any text.

    A character that a stream's encoding lacks is written as an escape (`\\u2014`); JSON is ASCII
    anyway. A closed stream takes everything and keeps nothing, as /dev/null does, and so does a
    stderr whose reader has gone: what is said there must not end the work. A closed stdin stays
    closed: whoever reads it says so.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets this number, the lowest free one, which otherwise the next file would get:
            # a model, say, into which a library then prints its warnings.
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
    """Takes the place of a stream.

    Args:
        stream: is detached.
        drops: what cannot be written, instead of raising an error.
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
        """Typer takes a stream of ASCII for a mistake, and writes UTF-8 into it."""
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
    """After an error of the file system: if stdout is where it was, what waits to be written there
    must not fail once more at the end of the process."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def announce_terminal() -> None:
    """Says so where text is about to be read from a terminal: a command that waits without a word
    looks as if it hung."""
    with suppress(AttributeError, ValueError):  # stdin is closed
        if sys.stdin.isatty():
            typer.echo("reading text from the terminal, line by line; Ctrl-D ends it", err=True)
