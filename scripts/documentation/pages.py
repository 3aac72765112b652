"""Pages with generated blocks: `<!-- table: KIND NAME… -->` down to `<!-- end -->`.

A block is generated from the files in `docs/` that its marker names: the page decides what it
shows, and the files hold the numbers.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sglm.errors import InputError

# Makes the text of a block from the names after KIND in its marker and the folder `docs`.
Maker = Callable[[list[str], Path], str]

_BEGINNING = re.compile(r"^<!-- table: ([^\n]+?) -->\n", re.MULTILINE)
_BLOCK = re.compile(rf"({_BEGINNING.pattern})(.*?)^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


def filled(page: str, makers: Mapping[str, Maker], docs: Path) -> str:
    """Returns the page with each of its blocks made anew; a marker must begin its line.

    Raises:
        InputError: A kind of table is unknown, a file is missing, or a block has no end.
    """

    def fill(block: re.Match[str]) -> str:
        beginning, named, content, end = block.groups()
        if _BEGINNING.search(content):
            raise InputError(f"the table {named!r} has no end: write <!-- end --> below it")
        kind, *names = named.split()
        if kind not in makers:
            raise InputError(f"no table {kind!r}; there are {', '.join(sorted(makers))}")
        return f"{beginning}{makers[kind](names, docs)}\n{end}"

    new, blocks = _BLOCK.subn(fill, page)
    if blocks != len(_BEGINNING.findall(page)):
        raise InputError("a table has no end: write <!-- end --> below it")
    return new


def markdown(rows: list[list[str]]) -> str:
    """Returns a table; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *body])
