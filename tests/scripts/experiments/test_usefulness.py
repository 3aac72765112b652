"""scripts/experiments/usefulness: runs are measured, shares are their corpus' own, gauges rank."""

import math
from argparse import Namespace
from pathlib import Path

import pytest

from scripts.experiments import usefulness
from sglm.text.store import TokenStore


def test_rank_correlation_is_of_ranks_and_ties_share_one() -> None:
    assert usefulness.rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert usefulness.rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # Ranks 0, 1.5, 1.5, 3 and 0, 1, 2, 3
    assert usefulness.rank_correlation([1, 2, 2, 5], [1, 2, 3, 4]) == pytest.approx(
        0.9487, abs=1e-4
    )
    assert math.isnan(usefulness.rank_correlation([1, 1], [1, 2]))


def test_seeds_of_an_estimator_make_the_interval_no_narrower() -> None:
    left, right = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]
    once = usefulness.interval(left, right, range(6))
    assert usefulness.interval(left * 3, right * 3, [*range(6)] * 3) == pytest.approx(once)
    assert -1 <= once[0] < usefulness.rank_correlation(left, right) < once[1] <= 1


def test_a_row_has_all_seeds_of_an_estimator() -> None:
    gauges = [dict.fromkeys(usefulness.GAUGES, value) for value in (0.2, 0.4)]
    rows = [
        {"corpus": "a", "arm": "mlp", "seed": s, "perplexity": 9.5 - s, "closed": s, "gauges": g}
        for s, g in [(1, gauges[1]), (0, gauges[0])]
    ]
    (line,) = usefulness.runs_table(rows).splitlines()[2:]
    assert line == "| a | mlp | 9.50, 8.50 | 50 % | 0.3 | 0.3 | 0.3 | 0.3 | 0.3 |"


def test_shares_are_of_the_gap_of_their_corpus() -> None:
    ends = {("a", "bptt"): 10.0, ("a", "bptt-long"): 8.0, ("a", "noise"): 11.0}
    ends |= {("b", "bptt"): 5.0, ("b", "bptt-long"): 4.0, ("b", "noise"): 4.5}
    results = [{"corpus": c, "arm": a, "perplexity": ppl} for (c, a), ppl in ends.items()]
    rows = usefulness.with_shares(results)
    assert [(row["corpus"], row["closed"]) for row in rows] == [("a", -0.5), ("b", 0.5)]


def test_gauges_are_ratios_of_what_a_whole_run_has_measured() -> None:
    found = usefulness.gauges([0.8, 0.6], [[1.0, 4.0, 0.5], [3.0, 4.0, 1.5]])
    expected = {"explained": 0.7, "beta": 0.5, "cosine": 1.0, "share": 2.0, "effect": 2.0}
    assert found == pytest.approx(expected)
    assert usefulness.gauges([], []) == dict.fromkeys(usefulness.GAUGES, 0.0)
    assert usefulness.gauges([0.8], [[1.0, -4.0, 0.5]])["beta"] == 0


def test_an_arm_is_the_mean_of_its_seeds() -> None:
    gauges = [dict.fromkeys(usefulness.GAUGES, value) for value in (0.2, 0.4)]
    results = [
        {"corpus": "a", "arm": arm, "seed": seed, "perplexity": ppl, "gauges": gauges[seed]}
        for arm, seed, ppl in [
            ("bptt", 0, 10.0),
            ("bptt", 1, 12.0),
            ("mlp", 1, 9.0),
            ("mlp", 0, 9.5),
        ]
    ]
    lines = usefulness.table(results).splitlines()  # no ceiling: no other table
    assert lines[2:] == [
        "| a | bptt | 2 | 0.30 | 0.30 | 11.00 ± 1.41 | +0.00, +0.00 |",
        "| a | mlp | 2 | 0.30 | 0.30 | 9.25 ± 0.35 | -3.00, -0.50 |",
    ]


def test_one_command_measures_and_ranks(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("GAUGE_EVERY", 2), ("KEPT", 2), ("BOOTSTRAPS", 20)):
        monkeypatch.setattr(usefulness, name, value)
    small = ["schedule.cycles=[10.0,10.0]", "model.hidden=6", "train.batch=4"]
    arms = "bptt;bptt-long;adjoint, every window;mlp, factor 1"
    arguments = Namespace(data=[word_store.folder], out=tmp_path, seeds="0", arms=arms, set=small)
    results = usefulness.run(arguments)
    assert usefulness.run(arguments) == results  # nothing is run again
    lines = usefulness.table(results).splitlines()
    assert len(lines) == 2 + 4 + 1 + 2 + 2 + 3 + 5
    assert lines[-5].startswith("| explained |")
