"""Formats output: prose that fits 80 columns, and rows of tables that other programs read."""

import textwrap
from collections.abc import Iterable

COLUMNS = 80
# White space in a text that would break a row of a table.
_ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})


def fill(text: str, indent: str = "", first: str | None = None) -> str:
    """Wraps a text into lines of 80 columns; a word that is longer is not broken.

    Args:
        text: A text without line breaks.
        indent: The text before every line.
        first: The text before the first line, in place of `indent`. None: `indent`.
    """
    return textwrap.fill(
        text,
        COLUMNS,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def tsv_row(values: Iterable[object]) -> str:
    """Returns a row with tabs between the values: a missing value is empty, quotes are doubled, and
    true is 1 (`docs/how-to/surprisal.md` shows how R and pandas read such a table)."""
    return "\t".join(map(_cell, values))


def one_line(text: str) -> str:
    """Returns a text with its tabs and line ends escaped."""
    return text.translate(_ESCAPES)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.6g}"
    text = one_line(str(value))
    return '"' + text.replace('"', '""') + '"' if '"' in text else text
