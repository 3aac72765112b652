"""Output of commands: text of any kind on a stdout of any encoding; what fits 80 columns."""

import sys
import textwrap

import typer

COLUMNS = 80


def print_text(text: str) -> None:
    """To stdout, also where its encoding lacks a character of the text."""
    encoding = sys.stdout.encoding or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def fill(text: str, indent: str = "", first: str | None = None) -> str:
    """A sentence on lines of 80 columns; a word that is longer stays whole.

    Args:
        text: without line breaks.
        indent: before every line.
        first: before the first one instead.
    """
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
