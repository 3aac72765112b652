"""Surprisals of words, as used in psycholinguistics, from those of tokens.

Words are separated by white space. White space before a word belongs to it; white space after the
last word, and a scored `<eos>`, belong to the last word.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sglm.errors import InputError, did_you_mean

Base = Literal[2, 10, "e"]
Correction = Literal["none", "bow"]
CORRECTIONS = ("none", "bow")
NO_WORD_MARKS_MESSAGE = (
    "needs tokens that mark where words begin, which this tokenizer's do not; leave it out"
)
_WORD = re.compile(r"\S+")
_NATS_PER_UNIT = {"2": math.log(2), "10": math.log(10), "e": 1.0}


class Word(NamedTuple):
    """A word of a text and its surprisal.

    Attributes:
        word: The word as it is written in the text.
        start, end: The word's position in the text, in characters; the end is exclusive.
        surprisal: −log of the word's probability given the text before it, in the requested base.
        n_tokens: The number of scored tokens of the word, including white space before it.
        unk: Whether one of these tokens is `<unk>`.
        rank: The rank of a word that is a single token, 1 if no token was likelier. None for other
            words, and if ranks were not recorded.
        entropy: The entropy of the distribution that predicted the word's first token, in the
            requested base. None if entropies were not recorded.
    """

    word: str
    start: int
    end: int
    surprisal: float
    n_tokens: int
    unk: bool
    rank: int | None
    entropy: float | None


def unit_nats(base: Base) -> float:
    """Returns the number of nats in one unit of a base's logarithm.

    Raises:
        InputError: The base is not 2, 10 or "e".
    """
    name = "e" if base == math.e else str(base)
    if name not in _NATS_PER_UNIT:
        raise InputError(f"base {base!r} is unknown; give 2 (bits), 10 or 'e' (nats)")
    return _NATS_PER_UNIT[name]


def check_correction(correction: str) -> None:
    """Checks the name of a correction.

    Raises:
        InputError: It is not one of `CORRECTIONS`.
    """
    if correction not in CORRECTIONS:
        hint = did_you_mean(str(correction), CORRECTIONS)
        raise InputError(f"correction {correction!r} is unknown{hint}; give none or bow")


def words_of(
    text: str,
    *,
    offsets: Sequence[tuple[int, int]],
    logprobs: Sequence[float],
    unk: Sequence[bool],
    ranks: Sequence[int] | None,
    entropies: Sequence[float] | None,
    boundaries: Sequence[float] | None,
    base: Base,
) -> list[Word]:
    """Computes the words of a text from its scored tokens.

    Args:
        text: The text.
        offsets, logprobs, unk, ranks, entropies: One entry for each scored token (see `Score`);
            None: not recorded.
        boundaries: The surprisal, in nats, of a word's beginning at each token and after the last
            one. The correction of Pimentel & Meister (2024) and Oh & Schuler (2024) moves it from
            the next word's tokens to the end of the word before. None: no correction.
        base: The base of the logarithm.
    """
    unit = unit_nats(base)
    spans = [match.span() for match in _WORD.finditer(text)]
    first_tokens = _first_tokens(text, offsets, spans)
    words = []
    for (start, end), first, stop in zip(spans, first_tokens, first_tokens[1:], strict=False):
        nats = -math.fsum(logprobs[first:stop])
        if boundaries is not None:
            nats += boundaries[stop] - boundaries[first]
        words.append(
            Word(
                text[start:end],
                start,
                end,
                surprisal=nats / unit + 0.0,  # not −0
                n_tokens=stop - first,
                unk=any(unk[first:stop]),
                rank=ranks[first] if ranks is not None and stop - first == 1 else None,
                entropy=entropies[first] / unit if entropies is not None and stop > first else None,
            )
        )
    return words


def _first_tokens(
    text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:
    """Returns the index of each word's first token and, at the end, the number of tokens."""
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    first_tokens = [0] * len(spans) + [len(offsets)]
    counts = [0] * (len(spans) + 1)
    for start, end in offsets:
        last = start + len(text[start:end].rstrip())
        word = bisect_left(ends, last) if last > start else bisect_left(starts, end)
        counts[min(word, len(spans) - 1)] += 1
    total = 0
    for word in range(len(spans)):
        first_tokens[word] = total
        total += counts[word]
    return first_tokens
