"""`sglm compare` as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sglm.cli.compare import parse_seeds, parse_shard, parse_variants
from sglm.cli.main import app
from sglm.compare import plan
from sglm.compare.variants import VARIANTS
from sglm.errors import InputError
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from tests.conftest import make_text

SMALL = [
    *("--set", "model.hidden=8", "--set", "train.batch=4", "--set", "train.window=5"),
    *("--set", "schedule.unit=steps", "--set", "train.log_every_steps=1"),
]
# Long enough that a signal arrives in the midst of it.
SOME_STEPS = ["--set", "schedule.cycles=[300, 300]", "--set", "train.evaluate_every_steps=200"]


def sglm_compare(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture
def workdir(tmp_path: Path, word_store: TokenStore) -> Iterator[Path]:
    """A working folder with a store, one without validation text, and a file."""
    (tmp_path / "store").symlink_to(word_store.folder)
    (tmp_path / "text.txt").write_text(make_text(100))
    prepare(
        [str(tmp_path / "text.txt")],
        tmp_path / "trainonly",
        StoreSettings(tokenizer="word", valid=0.0, test=0.0),
    )
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("years of work")
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


GOOD = ("tiny", "--data", "store", "--out", "new", *SMALL)
CASES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "unknown variant": ((*GOOD, "--variants", "bptt,alternatin"), ["did you mean 'alternating'"]),
    "no variant": ((*GOOD, "--variants", ""), ["--variants", "''", "known: ", "artbp"]),
    "a horizon for all": (
        (*GOOD, "--set", "train.horizon=20"),
        ["train.horizon", "bptt-long --horizon"],
    ),
    "a variant twice": ((*GOOD, "--variants", "dni,bptt,dni"), ["dni is given twice"]),
    "a seed that is a word": ((*GOOD, "--seeds", "0,one"), ["'one'", "--seeds"]),
    "a negative seed": ((*GOOD, "--seeds=-1"), ["'-1'", "--seeds"]),
    "a broken seed": ((*GOOD, "--seeds", "1.5"), ["'1.5'"]),
    "a seed too large": ((*GOOD, "--seeds", "9" * 30), ["9" * 30]),
    "a seed of thousands of digits": ((*GOOD, "--seeds", "9" * 5000), ["is not a seed"]),
    "a shard of thousands of digits": ((*GOOD, "--shard", "1/" + "9" * 5000), ["--shard"]),
    "a seed for all": ((*GOOD, "--set", "train.seed=7"), ["--set train.seed", "give --seeds"]),
    "lanes that cannot be swapped": (
        (*GOOD, "--variants", "bptt,swapped", "--set", "train.batch=3", "--horizon", "10"),
        ["swapped makes windows 2 times", "set train.batch"],
    ),
    "lanes too short for the synthesizer": (
        (*GOOD, "--variants", "bptt,dni", "--set", "synthesizer.every=5000"),
        ["the synthesizer would read", "lower them"],
    ),
    "a seed twice": ((*GOOD, "--seeds", "3,0,3"), ["3 is given twice"]),
    "shard 0": ((*GOOD, "--shard", "0/3"), ["--shard", "'0/3'"]),
    "shard beyond the last": ((*GOOD, "--shard", "4/3"), ["--shard", "'4/3'"]),
    "a shard of nothing": ((*GOOD, "--shard", "3"), ["--shard", "'3'", "1/3"]),
    "no validation text": (
        ("tiny", "--data", "trainonly", "--out", "new", *SMALL),
        ["trainonly", "--valid"],
    ),
    "no such store": (("tiny", "--data", "nowhere", "--out", "new"), ["nowhere", "sglm prep"]),
    "one cycle": (
        (*GOOD, "--set", "schedule.cycles=[10]", "--variants", "bptt,dni-restarts,alternating"),
        ["in dni-restarts, alternating", "schedule.cycles"],
    ),
    "a horizon within the window": (
        (*GOOD, "--horizon", "5", "--variants", "bptt-long"),
        ["--horizon 5", "train.window = 5"],
    ),
    "a key that the variants set": (
        (*GOOD, "--set", "train.horizon=10", "--set", "schedule.mode=real"),
        ["bptt-long"],
    ),
    "a file for a folder": (("tiny", "--data", "store", "--out", "text.txt"), ["is a file"]),
    "a folder of something else": (
        ("tiny", "--data", "store", "--out", "occupied"),
        ["thesis.tex", "--out"],
    ),
    "no such recipe": (("tinny", "--data", "store", "--out", "new"), ["'tiny'"]),
    "half precision on a CPU": ((*GOOD, "--device", "cpu", "--precision", "fp16"), ["fp32"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_with_its_cure_and_leaves_nothing(workdir: Path, case: str) -> None:
    arguments, words = CASES[case]
    before = sorted(workdir.rglob("*"))
    result = sglm_compare(*arguments)
    assert result.exit_code == 2, (result.stdout, result.stderr)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert lines[0].startswith("sglm: ")
    assert len(lines) <= 2, result.stderr
    for word in words:
        assert word in result.stderr
    assert sorted(workdir.rglob("*")) == before


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        plan, "seconds_of_runs", lambda configs, *others: dict.fromkeys(configs, 60.0)
    )
    monkeypatch.setattr(plan, "SHORT_UPDATES", 0)
    shown = sglm_compare(*GOOD, "--dry-run")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.startswith("9 runs of ")
    assert "about 9:00 in all" in shown.stdout
    as_json = json.loads(sglm_compare(*GOOD, "--dry-run", "--seeds", "4", "--json").stdout)
    assert as_json["seconds_per_run"] == {"bptt": 60.0, "dni": 60.0, "bptt-long": 60.0}
    assert [run["seed"] for run in as_json["runs"]] == [4, 4, 4]
    assert not (workdir / "new").exists()


@pytest.mark.parametrize("option", ["--data", "--out"])
def test_what_must_be_given_is_asked_for(option: str) -> None:
    given = {"--data": "store", "--out": "new"}
    del given[option]
    result = sglm_compare("tiny", *[word for pair in given.items() for word in pair])
    assert result.exit_code == 2
    assert option in result.stderr


def test_lists_are_read_as_people_write_them() -> None:
    assert parse_variants("bptt, dni") == ["bptt", "dni"]
    assert parse_seeds("0, 12,3") == [0, 12, 3]
    assert parse_shard("2/3") == (2, 3)
    with pytest.raises(InputError):
        parse_seeds("0,,1")
    with pytest.raises(InputError):
        parse_seeds("²")


def test_the_help_explains_every_variant() -> None:
    shown = CliRunner().invoke(app, ["compare", "--help"], env={"COLUMNS": "80"}).stdout
    flat = " ".join(shown.split())
    for name, variant in VARIANTS.items():
        assert f"{name} {variant.sentence}" in flat
    assert max(map(len, shown.splitlines())) <= 80


def test_ctrl_c_saves_and_the_same_command_continues(
    word_store: TokenStore, tmp_path: Path
) -> None:
    """To the whole process group, as from a terminal: the run must not take it as a second one."""
    out = tmp_path / "out"
    arguments = ["tiny", "--data", str(word_store.folder), "--out", str(out), *SMALL, *SOME_STEPS]
    arguments += ["--variants", "bptt", "--seeds", "3"]
    log = out / "runs" / "bptt-seed3.log"
    with subprocess.Popen(
        [sys.executable, "-m", "sglm.cli.main", "compare", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    ) as process:
        until = time.monotonic() + 120
        while not (log.exists() and "step 1/600" in log.read_text()):
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith("sglm: stopped with everything saved")
    assert "missing 1 of 1 runs: bptt seed 3" in stderr
    record = json.loads((out / "runs" / "bptt-seed3.json").read_text())
    assert record["finished"] is False
    assert (out / "runs" / "bptt-seed3" / "checkpoints" / "latest").exists()
    assert json.loads((out / "results.json").read_text())["variants"] == {}

    result = sglm_compare(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    assert log.read_text().count("continuing at step") == 1
    facts = json.loads(result.stdout)
    assert facts == json.loads((out / "results.json").read_text())
    assert (facts["updates"], facts["variants"]["bptt"]["seeds"]) == (600, [3])

    again = sglm_compare(*arguments)
    assert again.exit_code == 0
    assert "| bptt    |" in again.stdout
    assert "1 of 1 runs are finished already\n" in again.stderr
    assert "to be made" not in again.stderr
