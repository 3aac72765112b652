"""Text for a terminal, each token on a background that shows how surprising it was."""

import math
import os
import unicodedata
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sglm.scoring.results import Score

# The bits at which each next colour begins, and the colours, from the 256 of terminals: backgrounds
# from white through yellow to red, with text in black or white, so that it can be read on a dark
# terminal and on a light one.
EDGES = (1, 2, 4, 6, 8, 11, 15)
BACKGROUNDS = (231, 230, 229, 222, 215, 209, 203, 160)
_BLACK, _WHITE = 16, 231
_RESET = "\x1b[0m"
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
# Joiners, without which words of some scripts, and some emoji, would fall apart.
_JOINERS = "\u200c\u200d"


class Span(NamedTuple):
    """A part of a text that is shown in one colour."""

    start: int
    end: int
    bits: float


def colored_text(text: str, score: "Score") -> str:
    """Returns the text in colours; its own control characters are written as escapes.

    If NO_COLOR is set (https://no-color.org) or the terminal is a dumb one, each token is followed
    by its surprisal instead, in bits, rounded, as a subscript.
    """
    plain = _without_colors()
    parts, done = [], 0
    for start, end, bits in spans(text, score):
        shown = _safe(text[start:end])
        parts.append(_safe(text[done:start]))
        parts.append(f"{shown}{_in_digits(bits)}" if plain else _painted(shown, bits))
        done = end
    return "".join([*parts, _safe(text[done:])])


def legend() -> str:
    """Returns a line that explains the colours."""
    if _without_colors():
        return "surprisal in bits, after each token"
    labels = [f"<{edge}" for edge in EDGES] + [f"{EDGES[-1]}+"]
    levels = (0, *EDGES)
    painted = [_painted(f" {label} ", bits) for label, bits in zip(labels, levels, strict=True)]
    return f"surprisal in bits: {' '.join(painted)}"


def spans(text: str, score: "Score") -> list[Span]:
    """Returns the tokens of a text, each with the white space before it.

    Tokens that share a character are merged, and so is a token with the one before it if it begins
    with a mark on that one's last letter. A token without characters (some vocabularies have one
    that only marks the beginning of a word) is counted with the token after it, or, at the end of
    the text, is left out.
    """
    merged: list[Span] = []
    waiting = 0.0
    for (start, end), logprob in zip(score.offsets, score.token_logprobs, strict=True):
        bits = waiting - logprob / math.log(2)
        waiting = 0.0
        if merged and (start < merged[-1].end or _is_drawn_onto_previous(text, start, end)):
            last = merged.pop()
            merged.append(Span(last.start, max(last.end, end), last.bits + bits))
        elif end == start:
            waiting = bits
        else:
            before = text[merged[-1].end if merged else 0 : start]
            spaces = len(before) if before.isspace() else 0
            merged.append(Span(start - spaces, end, bits))
    return merged


def _without_colors() -> bool:
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _is_drawn_onto_previous(text: str, start: int, end: int) -> bool:
    """Returns whether a token begins with a character that is drawn onto the one before it."""
    if start >= end:
        return False
    first = text[start]
    joined = start > 0 and text[start - 1] in _JOINERS
    return unicodedata.category(first) in ("Mn", "Me", "Mc") or first in _JOINERS or joined


def _painted(shown: str, bits: float) -> str:
    level = bisect_right(EDGES, bits)
    letters = _WHITE if level == len(EDGES) else _BLACK
    return f"\x1b[38;5;{letters};48;5;{BACKGROUNDS[level]}m{shown}{_RESET}"


def _in_digits(bits: float) -> str:
    return str(round(bits)).translate(_SUBSCRIPTS) if math.isfinite(bits) else "∞"


def _safe(text: str) -> str:
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    """Returns a character as it is if it is harmless on a terminal, otherwise as an escape."""
    if character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
