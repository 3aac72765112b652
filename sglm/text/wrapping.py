"""Line ends of which a model learns what is not language: lines wrapped at a width, and CR LF."""

from collections.abc import Iterable
from itertools import islice, pairwise

# Read from the beginning of a text; so many that go on in the next line are needed to tell.
LINES, FEWEST = 5000, 50
# Narrower ones are verse or lists, wider ones are not wrapped for a page or a screen.
NARROWEST, WIDEST = 40, 200
# Nine lines in ten are not longer than the width: an address, say, may be.
_UP_TO_THE_WIDTH = 0.9
# Full lines of those that go on: of wrapped texts 76 to 100 %, of plays in verse, one sentence a
# line and one paragraph a line 10 to 30 %.
_FULL = 0.6


def has_crlf(lines: Iterable[str]) -> bool:
    """Whether most lines end in CR LF, as Windows writes them: carriage returns are text to a
    model whose tokens hold white space."""
    ended = [line for line in islice(lines, LINES) if line.endswith("\n")]
    return 2 * sum(line.endswith("\r\n") for line in ended) > len(ended)


def wrapped_width(lines: Iterable[str]) -> int | None:
    """The width, in characters, at which the lines of a text are wrapped; None where they are not.

    A wrapped line is full: the first word of the next line would not have fitted in. The last line
    of a paragraph, before an empty one or one that is indented more, tells nothing.
    """
    stripped = (line.rstrip() for line in islice(lines, LINES))
    going_on = [
        (len(line), len(after.split()[0]))
        for line, after in pairwise(stripped)
        if line and after and _indent(line).startswith(_indent(after))
    ]
    if len(going_on) < FEWEST:
        return None
    lengths = sorted(length for length, _ in going_on)
    width = lengths[int(_UP_TO_THE_WIDTH * (len(lengths) - 1))]
    full = sum(length + 1 + word > width for length, word in going_on)
    is_wrapped = NARROWEST <= width <= WIDEST and full >= _FULL * len(going_on)
    return width if is_wrapped else None


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]
