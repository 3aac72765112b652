"""Output of commands: prose that fits 80 columns, and rows of tables that other programs read."""

import textwrap
from collections.abc import Iterable

COLUMNS = 80
# White space of a text that would break a row of a table.
_ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r"})


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


def tsv_row(values: Iterable[object]) -> str:
    """A row with tabs between the values: empty is missing, quotes are doubled, and true is 1
    (`docs/how-to/surprisal.md`: how R and pandas read it)."""
    return "\t".join(map(_cell, values))


def one_line(text: str) -> str:
    """A text whose tabs and line ends are escapes."""
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
