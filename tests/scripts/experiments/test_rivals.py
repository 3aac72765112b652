"""scripts/experiments/rivals: minutes from tokens, milestones, the file that keeps the curves."""

import json
import sys
from pathlib import Path

import pytest

from scripts.experiments.rivals import curve, main, table

MINUTE = 60e6  # microseconds
CORPORA = {
    "words": {
        "other": {"microseconds": 1.0, "points": [[5 * MINUTE, 200.0], [30 * MINUTE, 120.0]]},
        "sglm small": {
            "microseconds": 0.5,
            "points": [[8 * MINUTE, 150.0], [18 * MINUTE, 110.0], [58 * MINUTE, 130.0]],
        },
    }
}


def test_a_milestone_is_the_best_model_of_the_minutes_until_then() -> None:
    ours = curve("sglm small", CORPORA["words"]["sglm small"])
    assert ours.minutes == [4.0, 9.0, 29.0]
    assert [ours.at(minutes) for minutes in (3, 4, 10, 30)] == [None, 150.0, 110.0, 110.0]
    assert [ours.at(minutes) for minutes in (8.90, 8.95)] == [150.0, 110.0]  # a hundredth late
    assert [ours.when(perplexity) for perplexity in (150.0, 120.0, 100.0)] == [4.0, 9.0, None]


def test_the_table_says_when_sglm_is_where_another_ends() -> None:
    assert table(CORPORA)[1:] == [
        ["words", "sglm small", "150.0", "110.0", "110.0", "110.0", ""],
        ["", "other", "200.0", "200.0", "200.0", "120.0", "9.0 min"],
    ]


def test_of_two_curves_of_sglm_the_first_to_be_there_counts() -> None:
    fast = {"microseconds": 0.5, "points": [[8 * MINUTE, 119.0]]}
    late = {"microseconds": 0.5, "points": [[58 * MINUTE, 50.0]]}
    rows = table({"words": {**CORPORA["words"], "sglm fast": fast, "sglm late": late}})
    assert rows[-1] == ["", "other", "200.0", "200.0", "200.0", "120.0", "4.0 min"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["rivals", *map(str, arguments)])
    main()


def test_curves_are_added_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    file, lines = tmp_path / "rivals.json", tmp_path / "lines"
    metrics = [
        {"split": "valid", "tokens_seen": 10, "token_ppl": 9.123},
        {"split": "test", "tokens_seen": 10, "token_ppl": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)))
    lines.write_text(json.dumps({"tokens": 20, "perplexity": 8.0}))
    common = ("add", file, "--corpus", "a corpus", "--microseconds", 3e6)
    run(monkeypatch, *common, "--system", "sglm", "--run", tmp_path)
    run(monkeypatch, *common, "--system", "other", "--curve", lines)
    assert json.loads(file.read_text()) == {
        "a corpus": {
            "sglm": {"microseconds": 3e6, "points": [[10, 9.12]]},
            "other": {"microseconds": 3e6, "points": [[20, 8.0]]},
        }
    }
    run(monkeypatch, "picture", file, tmp_path / "rivals.png")
    assert (tmp_path / "rivals.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_without_evaluations_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("")
    with pytest.raises(SystemExit):
        run(
            monkeypatch, "add", tmp_path / "f", "--corpus", "a", "--system", "b",
            "--microseconds", 1, "--curve", tmp_path / "empty",
        )  # fmt: skip
    assert "empty: no evaluation in it" in capsys.readouterr().err
