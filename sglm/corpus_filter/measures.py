"""The fields that can be added to a record, and the buckets of perplexity."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sglm.errors import InputError, did_you_mean
from sglm.scoring.metrics import bits_per_byte, finite_or_none, perplexity
from sglm.scoring.totals import TextTotals

Value = float | int | None
PERPLEXITY = "perplexity"
FIELDS: dict[str, Callable[[TextTotals], Value]] = {
    PERPLEXITY: lambda t: finite_or_none(perplexity(t.nll_nats, t.tokens)),
    "word_perplexity": lambda t: finite_or_none(perplexity(t.nll_nats, t.words or 0)),
    "bits_per_byte": lambda t: finite_or_none(bits_per_byte(t.nll_nats, t.bytes, t.hides_bytes)),
    "logprob": lambda t: finite_or_none(0.0 - t.nll_nats),
    "n_tokens": lambda t: t.tokens,
    "n_words": lambda t: t.words,
    "n_bytes": lambda t: t.bytes,
    "n_unk": lambda t: t.unknown,
}
COUNTS = tuple(name for name in FIELDS if name.startswith("n_"))
BUCKET = "bucket"
BUCKETS = ("head", "middle", "tail")
# Perplexities are counted in bins of so many to an octave: 0.07 % wide.
BINS_PER_OCTAVE = 1024


def check_fields(names: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        InputError: an unknown field, one twice, or none.
    """
    for number, name in enumerate(names):
        if name not in FIELDS:
            raise InputError(f"--fields: unknown {name!r}{did_you_mean(name, FIELDS)}")
        if name in names[:number]:
            raise InputError(f"--fields: {name!r} is there twice")
    if not names:
        raise InputError(f"--fields is empty; known: {', '.join(FIELDS)}")
    return tuple(names)


def added(totals: TextTotals, fields: Sequence[str], prefix: str) -> dict[str, Value]:
    """What a record gets; None where a measure is not defined, as the perplexity of no tokens."""
    return {prefix + name: FIELDS[name](totals) for name in fields}


def bin_of(value: float) -> int:
    """Of the histogram of perplexities."""
    return math.floor(math.log2(value) * BINS_PER_OCTAVE)


def cutoffs(histogram: Mapping[int, int], percentiles: Sequence[float]) -> tuple[float, float]:
    """The perplexities below which so many percent of the documents lie, as nearly as can be.

    Buckets by percentile of perplexity: Wenzek et al. 2020 (CCNet), sec. 3.3.

    Args:
        histogram: documents in each bin.
        percentiles: two.
    """
    bins = sorted(histogram)
    below, total = [0], sum(histogram.values())
    for each in bins:
        below.append(below[-1] + histogram[each])
    edges = [*bins, bins[-1] + 1] if bins else [0]
    low, high = (_edge(edges, below, percent * total / 100) for percent in percentiles)
    return low, high


def _edge(edges: Sequence[int], below: Sequence[int], wanted: float) -> float:
    """The lower edge of the bin that has about `wanted` documents below it."""
    place = bisect_left(below, wanted)
    if place > 0 and wanted - below[place - 1] < below[place] - wanted:
        place -= 1
    return float(2.0 ** (edges[place] / BINS_PER_OCTAVE))


def bucket(value: float | None, bounds: tuple[float, float]) -> str | None:
    """head, middle or tail; None without a perplexity."""
    if value is None:
        return None
    return BUCKETS[sum(value >= bound for bound in bounds)]


def merged(histograms: Sequence[Mapping[str, int]]) -> Counter[int]:
    """The sum of histograms as they are in JSON."""
    whole: Counter[int] = Counter()
    for each in histograms:
        whole.update({int(place): count for place, count in each.items()})
    return whole
