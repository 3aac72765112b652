"""Pages with generated blocks: `<!-- table: KIND NAME… -->` down to `<!-- end -->`.

A block is made of the files in `docs/` that its marker names, so a page says what it shows, and
the file what was measured.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from sglm.errors import InputError

# The names behind the kind, and the folder `docs`, to the lines of the block.
Maker = Callable[[list[str], Path], str]

_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
_BEGINNING = "<!-- table:"


def filled(page: str, makers: Mapping[str, Maker], docs: Path) -> str:
    """The page with each of its blocks made anew.

    Raises:
        InputError: a kind of table that nobody makes, a file that is not there, a block without
            end.
    """

    def fill(block: re.Match[str]) -> str:
        if _BEGINNING in block[0][len(_BEGINNING) :]:
            raise InputError(f"the table {block[2]!r} has no end: write <!-- end --> below it")
        kind, *names = block[2].split()
        if kind not in makers:
            raise InputError(f"no table {kind!r}; there are {', '.join(sorted(makers))}")
        return f"{block[1]}{makers[kind](names, docs)}\n{block[3]}"

    new, blocks = _BLOCK.subn(fill, page)
    if blocks != page.count(_BEGINNING):
        raise InputError("a table has no end: write <!-- end --> below it")
    return new


def markdown(rows: list[list[str]]) -> str:
    """A table; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *body])
