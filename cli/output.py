"""Output of commands that fits 80 columns."""

import textwrap

COLUMNS = 80


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
