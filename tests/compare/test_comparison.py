"""Whole comparisons: the runs are those of `sglm train`, and none is made twice."""

import io
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglm.compare.comparison import compare
from sglm.compare.grid import Cell, Grid
from sglm.compare.process import Execution
from sglm.compare.runs import RESULT_FILES, Comparison, Record
from sglm.config import parse_config
from sglm.errors import ConfigError, InputError, SglmError, Stopped
from sglm.optim.precision import unchecked_precision
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train.loop import train
from tests.compare.conftest import CPU, VALUES, compare_into, fake_python, run, write_run

MakeComparison = Callable[..., Comparison]


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def grid_in_two_calls(
    word_store: TokenStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]], list[str]]:
    """Two variants, two seeds: the second of two shards, then all that is left."""
    out = tmp_path_factory.mktemp("compare") / "out"
    first = run(word_store, out, shard=(2, 2))
    second = run(word_store, out)
    return out, [first[0], second[0]], [first[1], second[1]]


def test_shards_and_the_rest_make_the_whole(
    grid_in_two_calls: tuple[Path, list[dict[str, Any]], list[str]],
) -> None:
    out, (first, second), (first_output, second_output) = grid_in_two_calls
    assert [facts["seeds"] for facts in first["variants"].values()] == [[1], [1]]
    assert "missing 2 of 4 runs: bptt seed 0, alternating seed 0" in first_output
    assert [tuple(run.values()) for run in first["missing"]] == [("bptt", 0), ("alternating", 0)]
    assert [facts["seeds"] for facts in second["variants"].values()] == [[0, 1], [0, 1]]
    assert "2 of 4 runs are finished already" in second_output
    assert "missing" not in second_output
    assert second["missing"] == []
    assert "[1/4] bptt seed 0: training" in second_output
    assert "[2/4] alternating seed 0: " in second_output
    assert "[3/4]" not in second_output
    assert second["updates"] == 20
    assert json.loads((out / "results.json").read_text()) == second
    assert {path.name for path in out.iterdir()} == {
        "runs", "results.json", "table.md", "curves.png",
    }  # fmt: skip


def test_every_run_is_one_of_sglm_train_with_equal_updates(
    grid_in_two_calls: tuple[Path, list[dict[str, Any]], list[str]],
    word_store: TokenStore,
    tmp_path: Path,
) -> None:
    out, (_, results), _ = grid_in_two_calls
    for variant, mode, cycles in (("bptt", "real", [20.0]), ("alternating", None, [10.0, 10.0])):
        values = VALUES | {
            "train": {**VALUES["train"], "seed": 1},
            "schedule": {"unit": "steps", "cycles": cycles, "mode": mode or "alternating"},
        }
        alone = tmp_path / variant
        precision = unchecked_precision("fp32", CPU)
        train(
            parse_config(values, "test"),
            word_store,
            alone,
            precision=precision,
            console=io.StringIO(),
        )
        mine = metrics(out / "runs" / f"{variant}-seed1")
        # Bitwise on one thread; another number of threads may sum in another order.
        assert [line["step"] for line in mine] == [line["step"] for line in metrics(alone)]
        assert [line["token_ppl"] for line in mine] == pytest.approx(
            [line["token_ppl"] for line in metrics(alone)], rel=1e-5
        )
        assert mine[-1]["step"] == 20
        # At the end of the run, not at its best.
        assert results["variants"][variant]["token_ppl"][1] == mine[-1]["token_ppl"]


def test_costs_are_those_of_the_runs(
    grid_in_two_calls: tuple[Path, list[dict[str, Any]], list[str]],
) -> None:
    out, (_, results), _ = grid_in_two_calls
    for variant, facts in results["variants"].items():
        records = [Record.read(out / "runs" / f"{variant}-seed{seed}.json") for seed in (0, 1)]
        assert all(record is not None and record.finished for record in records)
        assert facts["seconds_mean"] == pytest.approx(sum(r.seconds for r in records if r) / 2)
        assert 50 < facts["peak_memory_mb"] < 2000  # a process with torch in it, in MB


def test_finished_runs_are_not_repeated(
    grid_in_two_calls: tuple[Path, list[dict[str, Any]], list[str]],
    word_store: TokenStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, (_, before), _ = grid_in_two_calls
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # to start a process would fail
    files = contents(out / "runs")
    results, printed = run(word_store, out)
    assert results == before
    assert contents(out / "runs") == files
    assert printed.startswith("4 of 4 runs are finished already\n")
    # A later call with other variants or seeds has the results of all that are there.
    assert run(word_store, out, variants=["alternating"], seeds=[1])[0] == before


def test_a_failure_is_named_and_the_other_runs_are_made(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(
        tmp_path / "python", "cat > /dev/null; echo 'OSError: boom' >&2; exit 1", monkeypatch
    )
    console = io.StringIO()
    with pytest.raises(
        SglmError, match=r"4 of 4 runs failed \(bptt seed 0, .*tries again"
    ) as error:
        compare_into(tmp_path / "out", word_store, variants=["bptt", "dni"], console=console)
    assert error.value.exit_code == 1
    assert console.getvalue().count("failed: OSError: boom (more in ") == 4
    assert (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("cat > /dev/null; echo 'the gradient was not finite'; exit 1", "gradient was not finite"),
        ("cat > /dev/null; kill -KILL $$", r"ended by SIGKILL \(out of memory\?\)"),
        ("exit 3", "failed: it printed no message"),
    ],
)
def test_the_reason_of_a_failure_is_printed(
    script: str,
    reason: str,
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_python(tmp_path / "python", script, monkeypatch)
    console = io.StringIO()
    with pytest.raises(SglmError):
        compare_into(tmp_path / "out", word_store, variants=["bptt"], seeds=[0], console=console)
    (line,) = [line for line in console.getvalue().splitlines() if "failed" in line]
    assert re.search(reason, line)


def test_out_of_memory_in_a_run_is_named_with_its_cure(
    word_store: TokenStore, tmp_path: Path
) -> None:
    # 8·10¹² float32 weights: refused by the allocator at once, nowhere taken.
    config = parse_config({**VALUES, "model": {"layers": 1, "hidden": 1_000_000}}, "test")
    console = io.StringIO()
    with pytest.raises(SglmError, match="1 of 1 runs failed"):
        compare_into(tmp_path, word_store, config, variants=["bptt"], seeds=[0], console=console)
    assert "out of memory; use shorter lines or, for training" in console.getvalue()


def test_a_refusal_that_all_runs_share_ends_it_at_once(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"cat > /dev/null; echo x >> {tmp_path / 'calls'}; echo 'no such thing'; exit 2"
    fake_python(tmp_path / "python", script, monkeypatch)
    with pytest.raises(InputError, match=r"^no such thing$"):
        run(word_store, tmp_path / "out")
    assert (tmp_path / "calls").read_text() == "x\n"
    assert (tmp_path / "out" / "results.json").exists(), "of what was finished before"


def test_a_stop_ends_the_run_gently_and_starts_no_other(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""cat > /dev/null; trap 'echo asked >> {tmp_path / "calls"}; exit 143' TERM
touch {tmp_path / "ready"}; while :; do sleep 0.05; done"""
    fake_python(tmp_path / "python", script, monkeypatch)

    def asked() -> int | None:
        return signal.SIGINT if (tmp_path / "ready").exists() else None

    with pytest.raises(Stopped, match="the same command continues") as stopped:
        run(word_store, tmp_path / "out", stop_signal=asked)
    assert stopped.value.exit_code == 130
    assert (tmp_path / "calls").read_text() == "asked\n"
    with pytest.raises(Stopped):
        run(word_store, tmp_path / "out", stop_signal=lambda: signal.SIGTERM)
    assert (tmp_path / "calls").read_text() == "asked\n"


def test_one_that_was_stopped_before_its_first_run_continues(
    word_store: TokenStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(Stopped, match="0 runs finished; the same command continues"):
            run(word_store, out, stop_signal=lambda: signal.SIGINT)
    assert {path.name for path in out.iterdir()} <= {*RESULT_FILES, "runs"}
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in RESULT_FILES:
        (empty / name).write_text("{}")
    with pytest.raises(Stopped, match="continues"):
        run(word_store, empty, stop_signal=lambda: signal.SIGINT)
    (empty / "thesis.txt").write_text("years of work")
    for entry in (empty / "runs",):
        if entry.exists():
            shutil.rmtree(entry)
    with pytest.raises(InputError, match=r"thesis\.txt"):
        run(word_store, empty)


def test_a_horizon_stays_until_another_is_asked_for(word_store: TokenStore, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"variants": ["bptt-long"], "seeds": [0]}
    first, _ = run(word_store, tmp_path / "out", horizon=15, **chosen)
    again, printed = run(word_store, tmp_path / "out", **chosen)
    assert first["horizon"] == again["horizon"] == 15
    assert "training" not in printed
    with pytest.raises(ConfigError, match="another configuration"):
        run(word_store, tmp_path / "out", horizon=25, **chosen)


def test_precisions_are_not_mixed(make_comparison: MakeComparison, word_store: TokenStore) -> None:
    comparison = make_comparison()
    config, out = comparison.base, comparison.out
    write_run(comparison, Cell("bptt", 0), 20.0, precision="bf16")
    with pytest.raises(ConfigError, match=r"trained in bf16, not fp32; .*--precision bf16"):
        run(word_store, out, config)
    # To look at what is finished takes no precision.
    results, _ = run(word_store, out, config, variants=["bptt"], seeds=[0])
    assert results["variants"]["bptt"]["seeds"] == [0]
    write_run(comparison, Cell("bptt", 1), 20.0, precision="fp32")
    with pytest.raises(ConfigError, match="trained in fp32, not bf16"):
        run(word_store, out, config, variants=["bptt"], seeds=[0])


def test_runs_of_other_machines_are_merged_with_a_line_about_the_mixture(
    make_comparison: MakeComparison, word_store: TokenStore
) -> None:
    comparison = make_comparison()
    for seed, device in ((0, "cpu"), (1, "cuda")):
        for variant, ppl in (("bptt", 20.0), ("alternating", 19.0 + seed / 10)):
            write_run(comparison, Cell(variant, seed), 30.0, ppl, device=device)
    results, printed = run(word_store, comparison.out, comparison.base)
    assert results["variants"]["alternating"]["diff_mean"] == pytest.approx(-0.95)
    assert "runs on cpu and cuda: their times and memory cannot be compared" in printed


@pytest.mark.parametrize(
    ("shares", "warning"),
    [
        ([0.5, 0.01], "the machine was busy during bptt seed 0: "),
        ([0.5, 0.2, 0.3, 0.4, None], "the machine was busy during 4 of 5 runs: "),
        ([0.05, None], None),
    ],
)
def test_times_that_a_busy_machine_made_are_named(
    make_comparison: MakeComparison,
    shares: list[float | None],
    warning: str | None,
) -> None:
    comparison = make_comparison()
    for seed, waited in enumerate(shares):
        write_run(comparison, Cell("bptt", seed), 20.0, waited=waited)
    seeds = tuple(range(len(shares)))
    console = io.StringIO()
    compare(
        comparison,
        grid=Grid(variants=("bptt",), seeds=seeds),
        execution=Execution(precision=unchecked_precision("fp32", CPU)),
        console=console,
    )
    if warning is None:
        assert "busy" not in console.getvalue()
    else:
        assert warning in console.getvalue()


def test_a_store_without_validation_text_is_refused(text_file: Path, tmp_path: Path) -> None:
    store = prepare(
        [str(text_file)], tmp_path / "store", StoreSettings(tokenizer="word", valid=0.0, test=0.0)
    )
    with pytest.raises(InputError, match=r"no split 'valid'.*--valid"):
        run(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
