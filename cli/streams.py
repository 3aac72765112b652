"""The standard streams as the shell hands them over: closed, or of an encoding that lacks most
characters."""

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

import typer


def prepare_streams() -> None:
    """From here on stdout and stderr take any text.

    A character that a stream's encoding lacks is written as an escape (`\\u2014`); JSON is ASCII
    anyway. A closed stream takes everything and keeps nothing, as /dev/null does. A closed stdin
    stays closed: whoever reads it says so.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # It gets this number, the lowest free one, which otherwise the next file would get:
            # a model, say, into which a library then prints its warnings.
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _escaping(sys.stdout)
    sys.stderr = _escaping(sys.stderr)


def _escaping(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if stream.encoding.lower() in ("ascii", "us-ascii", "ansi_x3.4-1968", "646"):
        line_buffering = stream.line_buffering
        return _ASCII(stream.detach(), encoding="ascii", line_buffering=line_buffering)
    stream.reconfigure(errors="backslashreplace")
    return stream


class _ASCII(io.TextIOWrapper):
    """ASCII with escapes. Under another name: typer takes a stream of ASCII for a mistake, and
    writes UTF-8 into it."""

    encoding = "latin-1"

    def __init__(self, buffer: io.BufferedIOBase, **how: object) -> None:
        super().__init__(buffer, errors="backslashreplace", **how)  # type: ignore[arg-type]


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
