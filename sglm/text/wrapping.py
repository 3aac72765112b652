"""Detects line ends that a model would learn although they are not language: wrapping, CR LF."""

from collections.abc import Iterable
from itertools import islice, pairwise

# The number of lines that are read from the beginning of a text, and the fewest of them that must
# continue in the next line for a decision.
LINES_READ, FEWEST_CONTINUED = 5000, 50
# Narrower lines are verse or lists; wider ones are not wrapped for a page or a screen.
NARROWEST, WIDEST = 40, 200
# The share of lines that are not longer than the width: an address, for example, may be longer.
_UP_TO_THE_WIDTH = 0.9
# The share of full lines among those that continue: 76 to 100 % in wrapped texts, 10 to 30 % in
# plays in verse and in texts with one sentence or one paragraph per line.
_FULL = 0.6


def has_crlf(lines: Iterable[str]) -> bool:
    """Returns whether most lines end in CR LF, as Windows writes them: a model whose tokens contain
    white space would learn the carriage returns as text."""
    ended = [line for line in islice(lines, LINES_READ) if line.endswith("\n")]
    return 2 * sum(line.endswith("\r\n") for line in ended) > len(ended)


def wrapped_width(lines: Iterable[str]) -> int | None:
    """Returns the width, in characters, at which the lines of a text are wrapped; None if they are
    not wrapped.

    A wrapped line is full: the first word of the next line would not have fitted in. The last line
    of a paragraph (before an empty line or one that is indented more) is not counted.
    """
    stripped = (line.rstrip() for line in islice(lines, LINES_READ))
    going_on = [
        (len(line), len(after.split()[0]))
        for line, after in pairwise(stripped)
        if line and after and _indent(line).startswith(_indent(after))
    ]
    if len(going_on) < FEWEST_CONTINUED:
        return None
    lengths = sorted(length for length, _ in going_on)
    width = lengths[int(_UP_TO_THE_WIDTH * (len(lengths) - 1))]
    full = sum(length + 1 + word > width for length, word in going_on)
    is_wrapped = NARROWEST <= width <= WIDEST and full >= _FULL * len(going_on)
    return width if is_wrapped else None


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
