"""Computes means, spreads, paired differences and their confidence from the results of runs.

Differences are paired by seed: runs with equal seeds start with equal weights and read equal data,
so that their differences scatter less than the runs do.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sglm.compare.runs import FinishedRun
from sglm.compare.variants import BASELINE, CEILING, VARIANTS
from sglm.scoring.metrics import finite_or_none

_CONFIDENCE = 0.95
_BISECTIONS = 60  # down to the last bit of a float64 angle

BySeed = Mapping[int, float]


class Difference(NamedTuple):
    """A mean of differences and its 95 % confidence interval, which is None for a single pair."""

    mean: float
    ci95: tuple[float, float] | None


def student_t(degrees: int, confidence: float = _CONFIDENCE) -> float:
    """Returns the t for which Student's distribution has the share `confidence` within ±t.

    Found by bisection on θ = arctan(t/√ν), of which the share is a finite sum (Abramowitz & Stegun
    1964, 26.7.3 and 26.7.4).

    Args:
        degrees: Degrees of freedom ν.
        confidence: Share of the distribution.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _share(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _share(angle: float, degrees: int) -> float:
    """Returns P(|T| ≤ √ν·tan θ) for ν degrees of freedom."""
    odd = degrees % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(1 + odd, degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * power / (power + 1)
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share


def paired_difference(values: BySeed, baseline: BySeed) -> Difference | None:
    """Returns `values - baseline` over common seeds; None if there are none or a run diverged."""
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    if not differences or not all(map(math.isfinite, differences)):
        return None
    mean, count = statistics.fmean(differences), len(differences)
    if count == 1:
        return Difference(mean, None)
    half = student_t(count - 1) * statistics.stdev(differences) / math.sqrt(count)
    return Difference(mean, (mean - half, mean + half))


def summarize(runs: Sequence[FinishedRun]) -> dict[str, dict[str, Any]]:
    """Returns the `variants` of `results.json`, in the order of `VARIANTS`, from finished runs.

    Each variant has: `seeds` and `token_ppl` (validation perplexity at the end of each run), their
    `token_ppl_mean` and `token_ppl_sd` (sample standard deviation; null for one seed),
    `nll_per_token_mean` (nats), `seconds_mean` (including evaluations), `seconds_ratio` (to the
    time of bptt, same seeds), `peak_memory_mb` (10⁶ bytes, the highest of the runs), `diff_mean`
    and `diff_ci95` (perplexity minus that of bptt, paired by seed; null for bptt), `controls` (the
    same difference from each of `Variant.controls`), `gap_closed`. Infinite and undefined numbers
    are None.
    """
    by_variant = {
        name: {run.seed: run for run in sorted(runs, key=lambda run: run.seed)}
        for name, runs in (
            (name, [run for run in runs if run.variant == name]) for name in VARIANTS
        )
        if runs
    }
    return {name: _summary(name, by_variant) for name in by_variant}


def _summary(name: str, by_variant: Mapping[str, Mapping[int, FinishedRun]]) -> dict[str, Any]:
    runs = by_variant[name]
    ppl = [run.token_ppl[-1] for run in runs.values()]
    peaks = [run.peak_memory_mb for run in runs.values() if run.peak_memory_mb is not None]
    controls = {
        other: _as_json(paired_difference(_last_ppl(runs), _last_ppl(by_variant[other])))
        for other in VARIANTS[name].controls
        if other in by_variant
    }
    baseline = {} if name == BASELINE else by_variant.get(BASELINE, {})
    difference = _as_json(paired_difference(_last_ppl(runs), _last_ppl(baseline)))
    return {
        "seeds": list(runs),
        "token_ppl": [finite_or_none(value) for value in ppl],
        "token_ppl_mean": finite_or_none(statistics.fmean(ppl)),
        "token_ppl_sd": finite_or_none(_sample_sd(ppl)),
        "nll_per_token_mean": finite_or_none(statistics.fmean(_last_nll(runs).values())),
        "seconds_mean": statistics.fmean(run.seconds for run in runs.values()),
        "seconds_ratio": _seconds_ratio(runs, by_variant.get(BASELINE, {})),
        "peak_memory_mb": max(peaks, default=None),
        **difference,
        "controls": controls,
        "gap_closed": gap_closed(
            {other: _last_nll(its_runs) for other, its_runs in by_variant.items()}, name
        ),
    }


def gap_closed(nll: Mapping[str, BySeed], name: str) -> float | None:
    """Returns the share of the horizon gap that a variant closes, in nats per token.

    It is (bptt - variant) / (bptt - bptt-long), over the seeds that all three have. None for bptt
    itself, and unless the confidence interval of the gap exists and lies above 0: otherwise a share
    of the gap means nothing.
    """
    if name == BASELINE or not {BASELINE, CEILING} <= nll.keys():
        return None
    seeds = nll[BASELINE].keys() & nll[CEILING].keys() & nll[name].keys()
    baseline = {seed: nll[BASELINE][seed] for seed in seeds}
    gap = paired_difference(baseline, nll[CEILING])
    gained = paired_difference(baseline, nll[name])
    if gap is None or gained is None or gap.ci95 is None or gap.ci95[0] <= 0:
        return None
    return gained.mean / gap.mean


def _last_ppl(runs: Mapping[int, FinishedRun]) -> dict[int, float]:
    return {seed: run.token_ppl[-1] for seed, run in runs.items()}


def _last_nll(runs: Mapping[int, FinishedRun]) -> dict[int, float]:
    return {seed: run.nll_per_token[-1] for seed, run in runs.items()}


def _sample_sd(values: Sequence[float]) -> float | None:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    return statistics.stdev(values)


def _seconds_ratio(
    runs: Mapping[int, FinishedRun], baseline: Mapping[int, FinishedRun]
) -> float | None:
    seeds = runs.keys() & baseline.keys()
    below = sum(baseline[seed].seconds for seed in seeds)
    return sum(runs[seed].seconds for seed in seeds) / below if below else None


def _as_json(difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {"diff_mean": None, "diff_ci95": None}
    interval = None if difference.ci95 is None else list(difference.ci95)
    return {"diff_mean": difference.mean, "diff_ci95": interval}
