"""scripts/long_memory: lessons get harder when they are solved, a grid can be made in pieces, and
the table says what the files say."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scripts.experiments import long_memory as harness
from scripts.experiments import long_memory_tasks as tasks


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network and a judgement of a moment."""
    base = {
        "model": {"layers": 1, "hidden": 8, "embedding": 4, "tied": False},
        "train": {"batch": 4},
        "optimizer": {"kind": "adam", "learning_rate": 1e-2},
    }
    monkeypatch.setattr(harness, "BASE", base)
    monkeypatch.setattr(tasks, "MEAN_OVER_TARGETS", 64)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("arm", list(harness.ARMS))
def test_every_arm_runs_and_repeats_itself(arm: str) -> None:
    first, again = (harness.train(harness.Run("copy", arm, 3, seed=1), 40) for _ in range(2))
    for result in (first, again):
        assert result.pop("seconds") > 0
    assert first == again
    assert first["final_length"] == 4
    assert 0.5 < first["final_error_bits"] < 10


@pytest.mark.usefixtures("tiny")
def test_a_solved_lesson_is_noted_and_the_next_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "SOLVED_BELOW_BITS", 100.0)  # whatever has been judged is solved
    result = harness.train(harness.Run("repeat-copy", "bptt", 8, seed=0), 60)
    lessons = [(lesson["bits"], lesson["repeats"]) for lesson in result["solved"]]
    assert lessons[:4] == [(1, 1), (2, 1), (2, 2), (3, 2)]
    assert [lesson["length"] for lesson in result["solved"][:4]] == [4, 5, 7, 9]
    updates = [lesson["updates"] for lesson in result["solved"]]
    # Each lesson is judged anew: 64 targets are at least two windows of 4 lanes × 8 steps.
    assert all(later - earlier >= 2 for earlier, later in pairwise(updates))
    assert result["final_length"] > result["solved"][-1]["length"]


@pytest.fixture
def pretended_error(tiny: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Steps that learn nothing and say that each target cost so many bits, or later 0.2."""
    error = {"bits": 0.1, "updates": math.inf}
    done = {"updates": 0}

    def step(learner: Any, window: Any, *_: Any, **__: Any) -> SimpleNamespace:
        if window.is_first:
            done["updates"] = 0
        bits = error["bits"] if done["updates"] <= error["updates"] else 0.2
        done["updates"] += 1
        targets = int((window.targets_TB != tasks.NO_TARGET).sum())
        return SimpleNamespace(nll_nats=torch.tensor(bits * math.log(2) * targets))

    monkeypatch.setattr(harness, "train_step", step)
    return error


def test_the_error_is_per_target_and_in_bits(pretended_error: dict[str, float]) -> None:
    run = harness.Run("copy", "bptt", 8, seed=0)
    below = harness.train(run, 50)
    assert len(below["solved"]) > 3
    assert below["solved"][0]["error_bits"] == pytest.approx(0.1)  # float32 sums: 1e-6
    pretended_error["updates"] = 0
    above = harness.train(run, 50)
    assert above["final_error_bits"] == pytest.approx(0.2)
    assert above["solved"] == []


def test_every_lesson_is_judged_anew(pretended_error: dict[str, float]) -> None:
    run = harness.Run("copy", "bptt", 8, seed=0)
    solved_after = harness.train(run, 50)["solved"][0]["updates"]
    pretended_error.update(bits=0.0, updates=solved_after)
    result = harness.train(run, 50)
    assert [lesson["updates"] for lesson in result["solved"]] == [solved_after]
    assert result["final_error_bits"] == pytest.approx(0.2)


@pytest.mark.usefixtures("pretended_error")
def test_nothing_is_judged_while_a_lane_has_shorter_episodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks.TaskStream, "settled", False)
    result = harness.train(harness.Run("copy", "bptt", 8, seed=0), 50)
    assert (result["solved"], result["final_error_bits"]) == ([], None)


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["long_memory", *arguments])
    harness.main()


@pytest.mark.usefixtures("tiny")
def test_a_grid_can_be_made_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    grid = ("--task", "copy", "--windows", "2,3", "--arms", "bptt", "--seeds", "0,1")
    arguments = (*grid, "--updates", "3", "--out", str(tmp_path))
    run_main(monkeypatch, *arguments, "--shard", "1/2")
    first = {path.name for path in tmp_path.iterdir()}
    assert len(first) == 2
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    run_main(monkeypatch, *arguments, "--shard", "2/2")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"copy-bptt-T{T}-seed{seed}.json" for T in (2, 3) for seed in (0, 1)]

    monkeypatch.setattr(harness, "train", lambda run, updates: pytest.fail("made again"))
    run_main(monkeypatch, *arguments)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.usefixtures("tiny")
def test_results_of_other_settings_are_not_mixed_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("--task", "copy", "--windows", "2", "--arms", "bptt", "--seeds", "0")
    run_main(monkeypatch, *one, "--updates", "2", "--out", str(tmp_path))
    with pytest.raises(SystemExit) as failed:
        run_main(monkeypatch, *one, "--updates", "3", "--out", str(tmp_path))
    assert failed.value.code == 2
    assert "other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "bpt"], "did you mean 'bptt'"),
        (["--windows", "2,x"], "--windows 2,x"),
        (["--windows", "0"], "--windows 0"),
        (["--shard", "0/2"], "--shard 0/2"),
        (["--shard", "3/2"], "--shard 3/2"),
        (["--updates", "0"], "--updates 0"),
        (["--table"], "no results"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as failed:
        run_main(monkeypatch, *arguments, "--out", str(tmp_path))
    assert failed.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def write_result(folder: Path, run: Any, lessons: dict[int, int], **others: Any) -> None:
    """A file as a run would have written it; lessons: length solved -> after how many updates."""
    solved = [{"length": length, "updates": updates} for length, updates in lessons.items()]
    result = {**run._asdict(), "updates": 1000, "seconds": 2.0, "solved": solved, **others}
    (folder / run.file_name).write_text(json.dumps(result))


def test_the_table_says_what_the_files_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Run = harness.Run
    for seed, length in enumerate((7, 6, 8)):
        write_result(tmp_path, Run("copy", "bptt", 4, seed), {4: 10, length: 900})
        write_result(tmp_path, Run("copy", "mlp", 4, seed), {4: 10, length * 2: 900}, seconds=3.0)
    # Made twice as many updates: what it solved after the others had stopped does not count.
    write_result(tmp_path, Run("copy", "mlp", 4, 3), {4: 10, 14: 950, 20: 1001}, updates=2000)
    write_result(tmp_path, Run("copy", "bptt", 8, 0), {})
    write_result(tmp_path, Run("copy", "mlp", 8, 0), {5: 999})
    run_main(monkeypatch, "--table", "--out", str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:10] == [
        "| copy | T=4 | T=8 |",
        "| --- | --- | --- |",
        "| bptt | 7 (7, 6, 8) | 0 (0) |",
        "| mlp | 14 (14, 12, 16, 14) ×2.00 | 5 (5) |",
        "| BPTT (paper) | 10 |  |",
        "| DNI (paper) | 18 |  |",
        "| DNI + Aux (paper) | 19 |  |",
        "| updates | 1,000 | 1,000 |",
    ]
    assert "| bptt | 2.00 | 2.00 |" in lines
    assert "| mlp | 3.00 | 2.00 |" in lines
    assert not any("repeat-copy" in line for line in lines)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "copy-bptt-T4-seed0.json").write_text("{")
    with pytest.raises(harness.InputError, match="copy-bptt-T4-seed0"):
        harness.tables(tmp_path)
