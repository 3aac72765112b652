"""The results for people: they claim no more than the numbers show."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglm.compare.curves import band, draw
from sglm.compare.grid import Cell
from sglm.compare.results import write_results
from sglm.compare.runs import Comparison
from sglm.compare.table import in_words, table, terminal_table
from sglm.storage.picture import can_draw
from tests.compare.conftest import write_run

PNG = b"\x89PNG\r\n\x1a\n"


def facts(
    mean: float | None = 100.0,
    diff: float | None = None,
    ci95: list[float] | None = None,
    **more: Any,
) -> dict[str, Any]:
    return {
        "seeds": [0, 1, 2], "token_ppl_mean": mean, "token_ppl_sd": 0.5, "seconds_mean": 61.0,
        "seconds_ratio": 1.1, "peak_memory_mb": 432.1, "diff_mean": diff, "diff_ci95": ci95,
        "controls": {}, "gap_closed": None, **more,
    }  # fmt: skip


def results(**variants: dict[str, Any]) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in variants.items()}
    return {"variants": named, "updates": 1234, "horizon": 140}


def test_the_table() -> None:
    shown = table(
        results(
            bptt=facts(101.25, seconds_ratio=1.0),
            alternating=facts(100.45, -0.8, [-1.2, -0.4], gap_closed=0.333),
            bptt_long=facts(98.85, -2.4, [-2.6, -2.2], gap_closed=1.0),
        )
    ).splitlines()
    assert shown[0] == "Validation perplexity per token after 1,234 updates."
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown[2:7]]
    assert rows[0] == [
        "variant", "seeds", "perplexity", "difference from bptt (95 % CI)", "gap closed", "time",
        "peak memory",
    ]  # fmt: skip
    assert rows[2] == ["bptt", "3", "101.25 ± 0.50", "–", "–", "61 s (×1.00)", "432 MB"]
    assert rows[3] == [
        "alternating", "3", "100.45 ± 0.50", "−0.80 (−1.20 … −0.40)", "33 %", "61 s (×1.10)",
        "432 MB",
    ]  # fmt: skip
    assert len({len(line) for line in shown[2:7]}) == 1  # lined up


def test_the_gap_has_a_column_only_where_it_was_measured() -> None:
    assert "gap" not in table(results(bptt=facts(), dni=facts(99.0, -1.0, [-2.0, 0.1])))


def test_what_is_missing_is_a_dash() -> None:
    run = facts(None, peak_memory_mb=None, token_ppl_sd=None, seconds_ratio=None)
    assert "| dni     |     3 |   diverged |" in table(results(dni=run))
    assert "No run is finished" in table(results())


def test_differences_are_named_only_where_the_interval_leaves_out_zero() -> None:
    sentences = in_words(
        results(
            bptt=facts(),
            bptt_restarts=facts(101.0, 1.0, [0.5, 1.5]),
            dni=facts(99.0, -1.0, [-2.1, 0.1]),
            dni_restarts=facts(101.0, 1.0, [-0.1, 2.1]),
            alternating=facts(99.2, -0.8, [-1.2, -0.4]),
        )
    ).splitlines()
    assert sentences == [
        "Better than bptt: alternating by 0.80 (95 % CI −1.20 … −0.40).",
        "Worse than bptt: bptt-restarts by 1.00 (95 % CI +0.50 … +1.50).",
        "No difference from bptt beyond the spread over seeds: dni (95 % CI −2.10 … +0.10);"
        " dni-restarts (95 % CI −0.10 … +2.10).",
    ]


@pytest.mark.parametrize("mean", [50.0, 150.0])
def test_one_seed_claims_nothing(mean: float) -> None:
    sentences = in_words(results(bptt=facts(), alternating=facts(mean, mean - 100.0, None)))
    assert sentences.startswith("Cannot be told from chance")
    assert "Better" not in sentences
    assert "Worse" not in sentences


def test_a_run_that_diverged_or_is_missing_is_said() -> None:
    said = in_words(
        results(
            bptt=facts(token_ppl=[100.0, 101.0, 99.0]),
            dni=facts(None, None, None, token_ppl=[100.0, None, 99.0]),
            noise=facts(101.0, 1.0, [0.5, 1.5], seeds=[0, 2], token_ppl=[100.0, 102.0]),
        )
    ).splitlines()
    assert "Diverged: dni with 1 of 3 seeds." in said
    assert said[-1] == (
        "noise has no run for bptt's seeds 1: the difference of noise is over the other seeds."
    )
    fewer = in_words(
        results(
            bptt=facts(seeds=[0, 1], token_ppl=[100.0, 101.0]),
            dni=facts(99.0, -1.0, [-1.5, -0.5], seeds=[0, 1, 2]),
        )
    ).splitlines()
    assert fewer[-1] == (
        "bptt has no run for dni's seeds 2: the difference of dni is over the other seeds."
    )


def test_a_gain_is_held_against_its_controls() -> None:
    controls = {
        "bptt-restarts": {"diff_mean": -0.3, "diff_ci95": [-0.5, -0.1]},
        "noise": {"diff_mean": -0.1, "diff_ci95": [-0.4, 0.2]},
    }
    gain = facts(99.2, -0.8, [-1.2, -0.4], controls=controls)
    assert in_words(results(bptt=facts(), alternating=gain)).splitlines()[1] == (
        "Against its controls, alternating is better than bptt-restarts by 0.30 (95 % CI −0.50 …"
        " −0.10); no different from noise (95 % CI −0.40 … +0.20)."
    )


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([-0.4, 0.6], "No gain is seen from the exact gradient"),
        ([0.1, 0.6], "harms, so a synthetic one has nothing to gain"),
        ([-0.9, -0.4], None),
        (None, None),
    ],
)
def test_a_gap_that_is_not_open_is_named(interval: list[float] | None, words: str | None) -> None:
    sentences = in_words(results(bptt=facts(), bptt_long=facts(100.0, 0.1, interval)))
    assert ("the exact gradient over 140 steps (bptt-long)" in sentences) == (words is not None)
    assert words is None or words in sentences


def test_without_the_baseline_nothing_is_claimed() -> None:
    assert "bptt, which has not finished a run" in in_words(results(dni=facts()))


def test_small_perplexities_get_more_decimals() -> None:
    sentences = in_words(results(bptt=facts(3.8), dni=facts(3.795, -0.005, [-0.009, -0.001])))
    assert sentences == "Better than bptt: dni by 0.0050 (95 % CI −0.0090 … −0.0010)."


def test_results_are_json_that_everyone_can_read(
    make_comparison: Callable[..., Comparison],
) -> None:
    comparison = make_comparison()
    write_run(comparison, Cell("bptt", 0), 30.0, 20.0)
    write_run(comparison, Cell("dni", 0), 30.0, math.inf)
    made = write_results(comparison, list(comparison.collect().values()), missing=[Cell("bptt", 1)])
    text = (comparison.out / "results.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == made
    assert set(made) == {
        "variants", "missing", "updates", "horizon", "config", "data", "versions",
    }  # fmt: skip
    assert made["missing"] == [{"variant": "bptt", "seed": 1}]
    assert set(made["variants"]["dni"]) >= {
        "seeds", "token_ppl", "token_ppl_mean", "token_ppl_sd", "seconds_mean", "peak_memory_mb",
        "diff_mean", "diff_ci95",
    }  # fmt: skip
    assert made["variants"]["dni"]["token_ppl"] == [None]
    assert made["updates"] == 40
    written = (comparison.out / "table.md").read_text()
    assert written == table(made) + "\n"
    assert written.endswith("Not finished: bptt seed 1.\n")


def test_the_picture_shows_mean_and_band(make_comparison: Callable[..., Comparison]) -> None:
    comparison = make_comparison()
    write_run(comparison, Cell("bptt", 0), 60.0, 30.0, 20.0)
    write_run(comparison, Cell("bptt", 1), 50.0, 34.0, 22.0)
    write_run(comparison, Cell("noise", 1), 50.0, math.inf, math.inf)
    runs = list(comparison.collect().values())
    path = comparison.out / "curves.png"
    draw(runs, path)
    assert path.read_bytes().startswith(PNG)
    steps, mean, low, high = band([run for run in runs if run.variant == "bptt"])
    assert steps == [13, 26, 40]
    assert (mean, low, high) == ([55.0, 32.0, 21.0], [50.0, 30.0, 20.0], [60.0, 34.0, 22.0])


def test_without_matplotlib_nothing_is_drawn(
    make_comparison: Callable[..., Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = make_comparison()
    write_run(comparison, Cell("bptt", 0), 20.0)
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw(list(comparison.collect().values()), Path(comparison.out / "curves.png"))
    assert not can_draw()
    assert not (comparison.out / "curves.png").exists()


def test_on_a_terminal_the_table_fits_80_columns() -> None:
    """Of the longest names and numbers that there may be."""
    wide = results(
        bptt=facts(1234.25, seconds_ratio=1.0, token_ppl_sd=12.34, seeds=[0]),
        bptt_long_restarts=facts(
            1201.5, -32.75, [-45.25, -20.25], gap_closed=1.0, token_ppl_sd=12.34
        ),
        bptt_long=facts(1201.5, -32.75, [-45.25, -20.25], gap_closed=1.0, peak_memory_mb=1234.5),
        alternating=facts(1210.5, -23.75, [-36.25, -11.25], gap_closed=0.725),
    )
    shown = terminal_table(wide).splitlines()
    assert max(map(len, shown)) <= 80
    assert shown[0] == "Validation perplexity per token after 1,234 updates; n seeds."
    heading, *rows = shown[2:7]
    assert heading.split() == [
        "n", "perplexity", "over", "bptt", "(95", "%", "CI)", "gap", "time", "MB",
    ]  # fmt: skip
    assert rows[3].split() == [
        "alternating", "3", "1,210.50", "±", "0.50", "−23.75", "(−36.25", "…", "−11.25)", "72", "%",
        "×1.10", "432",
    ]  # fmt: skip
    flat = " ".join(" ".join(shown[8:]).split())
    assert flat == " ".join(in_words(wide).split())


def test_a_terminal_s_table_has_no_gap_that_was_not_measured() -> None:
    shown = terminal_table(results(bptt=facts(), dni=facts(99.0, -1.0, [-1.5, -0.5])))
    assert "gap" not in shown
    assert "updates, 3 seeds each.\n" in shown
    assert " n " not in shown
    assert terminal_table(results()) == table(results())


def test_an_interval_that_only_touches_zero_does_not_leave_it_out() -> None:
    for mean, interval in ((-1.0, [-2.0, 0.0]), (1.0, [0.0, 2.0])):
        sentences = in_words(results(bptt=facts(), dni=facts(100.0 + mean, mean, interval)))
        assert sentences.startswith("No difference from bptt beyond the spread over seeds: dni")
