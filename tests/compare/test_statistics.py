"""Means, spreads, intervals and shares, against values worked out elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.compare.runs import FinishedRun
from sglm.compare.statistics import Difference, gap_closed, paired_difference, student_t, summarize


def finished(
    variant: str, seed: int, ppl: float, seconds: float = 10.0, memory: float | None = 100.0
) -> FinishedRun:
    # Better before: the results are those at the end.
    token_ppl = [ppl / 2, ppl]
    nll = [math.log(value) for value in token_ppl]
    return FinishedRun(
        variant=variant,
        seed=seed,
        steps=[5, 10],
        token_ppl=token_ppl,
        nll_per_token=nll,
        seconds=seconds,
        peak_memory_mb=memory,
        device="cpu",
        precision="fp32",
    )


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # The usual tables' column for 95 %, two-sided (Abramowitz & Stegun 1964, table 26.10).
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228),
     (29, 2.045), (30, 2.042), (120, 1.980), (100_001, 1.960)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=5e-4)  # they have three decimals


def test_students_t_at_other_levels() -> None:
    assert student_t(1, 0.5) == pytest.approx(1.0, rel=1e-12)  # Cauchy's quartile
    assert student_t(2, 0.9) == pytest.approx(0.9 * math.sqrt(2 / 0.19), rel=1e-12)  # closed form
    assert student_t(4, 0.99) == pytest.approx(4.604, abs=5e-4)


def test_the_interval_holds_the_true_mean_in_95_percent_of_trials() -> None:
    rng = np.random.default_rng(0)
    trials, hits = 4000, 0
    for _ in range(trials):
        values = dict(enumerate(rng.normal(0.3, 1.0, size=3).tolist()))
        difference = paired_difference(values, dict.fromkeys(values, 0.0))
        assert difference is not None
        assert difference.ci95 is not None
        hits += difference.ci95[0] < 0.3 < difference.ci95[1]
    # Four standard errors of a share of 0.95 among 4000: 4·√(0.95·0.05/4000) = 0.014.
    assert hits / trials == pytest.approx(0.95, abs=0.014)


def test_a_paired_difference_by_hand() -> None:
    # Differences -1, -2, -3: mean -2, sd 1, half width 4.3027·1/√3 = 2.4841.
    difference = paired_difference({0: 9.0, 1: 18.0, 2: 27.0}, {2: 30.0, 1: 20.0, 0: 10.0, 5: 1.0})
    assert difference is not None
    assert difference.mean == -2.0
    assert difference.ci95 == pytest.approx((-4.4841, 0.4841), abs=1e-4)


def test_what_cannot_be_compared() -> None:
    assert paired_difference({0: 1.0}, {1: 2.0}) is None
    assert paired_difference({0: 1.0}, {0: 3.0}) == Difference(-2.0, None)
    assert paired_difference({0: math.inf, 1: 1.0}, {0: 1.0, 1: 1.0}) is None


@given(
    st.lists(st.floats(1.0, 1000.0), min_size=2, max_size=6),
    st.floats(-100.0, 100.0),
)
def test_what_all_seeds_share_does_not_blur_a_difference(values: list[float], by: float) -> None:
    baseline = dict(enumerate(values))
    difference = paired_difference({seed: value + by for seed, value in baseline.items()}, baseline)
    assert difference is not None
    assert difference.ci95 is not None
    # Rounding of values up to 1100 in float64, times t = 12.7 at most.
    assert difference.ci95 == pytest.approx((by, by), abs=1e-10)


def test_the_summary_of_a_variant() -> None:
    runs = [
        finished("alternating", 1, 95.0, seconds=22.0, memory=130.0),
        finished("alternating", 0, 91.0, seconds=20.0, memory=120.0),
        finished("bptt", 0, 92.0, seconds=10.0),
        finished("bptt", 1, 98.0, seconds=10.0, memory=None),
        finished("bptt", 2, 101.0, seconds=500.0),
        finished("bptt-restarts", 0, 91.0),
    ]
    summary = summarize(runs)
    assert list(summary) == ["bptt", "bptt-restarts", "alternating"]
    facts = summary["alternating"]
    assert (facts["seeds"], facts["token_ppl"]) == ([0, 1], [91.0, 95.0])
    assert facts["token_ppl_mean"] == 93.0
    assert facts["token_ppl_sd"] == pytest.approx(math.sqrt(8))
    assert facts["nll_per_token_mean"] == pytest.approx((math.log(91) + math.log(95)) / 2)
    assert (facts["seconds_mean"], facts["peak_memory_mb"]) == (21.0, 130.0)
    assert facts["seconds_ratio"] == pytest.approx(42 / 20)  # seed 2 has no partner
    assert facts["diff_mean"] == -2.0  # of -1 and -3
    half = 12.7062 * math.sqrt(2) / math.sqrt(2)
    assert facts["diff_ci95"] == pytest.approx([-2 - half, -2 + half], abs=1e-4)
    assert facts["controls"] == {"bptt-restarts": {"diff_mean": 0.0, "diff_ci95": None}}
    assert facts["gap_closed"] is None
    for key in ("diff_mean", "diff_ci95", "gap_closed"):
        assert summary["bptt"][key] is None
    assert summary["bptt-restarts"]["token_ppl_sd"] is None
    assert summary["bptt-restarts"]["diff_ci95"] is None


def test_without_the_baseline_nothing_is_different() -> None:
    facts = summarize([finished("dni", 0, 90.0), finished("dni", 1, 91.0)])["dni"]
    assert (facts["diff_mean"], facts["diff_ci95"], facts["seconds_ratio"]) == (None, None, None)


def test_a_run_that_diverged_leaves_no_infinite_number() -> None:
    runs = [finished("bptt", 0, 90.0), finished("dni", 0, math.inf), finished("dni", 1, 80.0)]
    runs.append(finished("bptt", 1, 91.0))
    facts = summarize(runs)["dni"]
    assert facts["token_ppl"] == [None, 80.0]
    for key in ("token_ppl_mean", "token_ppl_sd", "nll_per_token_mean", "diff_mean", "diff_ci95"):
        assert facts[key] is None


def test_the_share_of_the_gap() -> None:
    nll = {
        "bptt": {0: 4.0, 1: 4.2, 2: 4.1},
        "bptt-long": {0: 3.6, 1: 3.81, 2: 3.69},
        "alternating": {0: 3.9, 1: 4.1, 2: 4.0},
        "dni": {0: 4.1, 1: 4.3, 2: 4.2},
    }
    assert gap_closed(nll, "bptt-long") == pytest.approx(1.0)
    assert gap_closed(nll, "alternating") == pytest.approx(0.1 / 0.4)
    assert gap_closed(nll, "dni") == pytest.approx(-0.1 / 0.4)
    assert gap_closed(nll, "bptt") is None


@pytest.mark.parametrize(
    "ceiling",
    [
        {0: 3.6, 1: 4.5, 2: 4.0},  # its interval holds 0
        {0: 4.4, 1: 4.61, 2: 4.49},  # the longer gradient is worse, surely
        {0: 3.6},  # one seed
    ],
)
def test_a_gap_that_is_not_open_has_no_share(ceiling: dict[int, float]) -> None:
    nll = {"bptt": {0: 4.0, 1: 4.2, 2: 4.1}, "dni": {0: 3.9, 1: 4.1, 2: 4.0}, "bptt-long": ceiling}
    assert gap_closed(nll, "dni") is None


def test_a_gain_over_a_control_is_below_zero_like_one_over_the_baseline() -> None:
    runs = [finished("bptt", seed, 100.0) for seed in (0, 1)]
    runs += [finished("bptt-restarts", 0, 96.0), finished("bptt-restarts", 1, 95.0)]
    runs += [finished("alternating", 0, 93.0), finished("alternating", 1, 90.0)]
    control = summarize(runs)["alternating"]["controls"]["bptt-restarts"]
    assert control["diff_mean"] == -4.0  # of -3 and -5
    low, high = control["diff_ci95"]
    assert low < -4.0 < high


def test_the_share_of_the_gap_is_of_the_seeds_that_all_three_have() -> None:
    nll = {
        "bptt": {0: 4.0, 1: 4.2, 2: 9.0},
        "bptt-long": {0: 3.6, 1: 3.81, 2: 8.6, 3: 1.0},
        "dni": {0: 3.9, 1: 4.1, 3: 1.0},
    }
    assert gap_closed(nll, "dni") == pytest.approx(0.1 / 0.395)
