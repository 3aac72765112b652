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
    "bits_per_byte": lambda t: finite_or_none(
        bits_per_byte(t.nll_nats, t.bytes, t.has_unscored_bytes)
    ),
    "logprob": lambda t: finite_or_none(0.0 - t.nll_nats),
    "n_tokens": lambda t: t.tokens,
    "n_words": lambda t: t.words,
    "n_bytes": lambda t: t.bytes,
    "n_unk": lambda t: t.unknown,
}
COUNTS = tuple(name for name in FIELDS if name.startswith("n_"))
BUCKET = "bucket"
BUCKETS = ("head", "middle", "tail")
# Perplexities are counted in bins of this number to an octave, each 0.07 % wide.
BINS_PER_OCTAVE = 1024


def check_fields(names: Sequence[str]) -> tuple[str, ...]:
    """Checks the names of fields.

    Raises:
        InputError: A field is unknown or repeated, or there is none.
    """
    for number, name in enumerate(names):
        if name not in FIELDS:
            raise InputError(f"--fields: unknown {name!r}{did_you_mean(name, FIELDS)}")
        if name in names[:number]:
            raise InputError(f"--fields: {name!r} is given twice")
    if not names:
        raise InputError(f"--fields is empty; known: {', '.join(FIELDS)}")
    return tuple(names)


def added_fields(totals: TextTotals, fields: Sequence[str], prefix: str) -> dict[str, Value]:
    """Returns a record's new fields; undefined measures (the perplexity of no tokens) are None."""
    return {prefix + name: FIELDS[name](totals) for name in fields}


def bin_of(value: float) -> int:
    """Returns the bin of a perplexity in the histogram."""
    return math.floor(math.log2(value) * BINS_PER_OCTAVE)


def cutoffs(histogram: Mapping[int, int], percentiles: Sequence[float]) -> tuple[float, float]:
    """Returns two perplexities below which about the given percentages of the documents lie.

    Buckets by percentile of perplexity: Wenzek et al. 2020 (CCNet), sec. 3.3.

    Args:
        histogram: Number of documents in each bin.
        percentiles: The two percentiles, in per cent.
    """
    bins = sorted(histogram)
    below, total = [0], sum(histogram.values())
    for each in bins:
        below.append(below[-1] + histogram[each])
    edges = [*bins, bins[-1] + 1] if bins else [0]
    low, high = (_edge(edges, below, percent * total / 100) for percent in percentiles)
    return low, high


def _edge(edges: Sequence[int], below: Sequence[int], documents: float) -> float:
    """Returns the lower edge of the bin below which there are about this number of documents."""
    place = bisect_left(below, documents)
    if place > 0 and documents - below[place - 1] < below[place] - documents:
        place -= 1
    return float(2.0 ** (edges[place] / BINS_PER_OCTAVE))


def bucket(value: float | None, bounds: tuple[float, float]) -> str | None:
    """Returns head, middle or tail; None without a perplexity."""
    if value is None:
        return None
    return BUCKETS[sum(value >= bound for bound in bounds)]


def merged_histograms(histograms: Sequence[Mapping[str, int]]) -> Counter[int]:
    """Returns the sum of histograms whose keys are strings, as in JSON."""
    whole: Counter[int] = Counter()
    for each in histograms:
        whole.update({int(place): count for place, count in each.items()})
    return whole
