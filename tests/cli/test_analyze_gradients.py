"""`sglm analyze gradients` and `landscape`, as users call them, on a run of some seconds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sglm.analyze import gradients, landscape
from sglm.analyze.landscape import analysis as landscape_analysis
from sglm.analyze.landscape import lines as landscape_lines
from sglm.analyze.subjects import Subject
from sglm.analyze.trained import Trained
from sglm.cli.main import app
from sglm.text.prepare import StoreSettings, prepare
from tests.conftest import make_text

CONFIG = """
[model]
layers = 2
hidden = 8
[train]
batch = 2
window = 5
evaluate_every_steps = 20
[schedule]
mode = "synthetic"
unit = "steps"
cycles = [10.0, 10.0]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyzed")
    torch.set_num_threads(1)  # as tests/conftest.py does before each test: a fixture comes earlier
    (folder / "text.txt").write_text(make_text(2200), encoding="utf-8")
    prepare([str(folder / "text.txt")], folder / "store", StoreSettings(tokenizer="word"))
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    arguments = [str(folder / "config.toml"), "--data", str(folder / "store")]
    result = CliRunner().invoke(app, ["train", *arguments, "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_gradients_prints_a_table_and_a_sentence_and_goes_on(run: Path, tmp_path: Path) -> None:
    command = ["analyze", "gradients", str(run), "--out", str(tmp_path), "--windows", "64"]
    result = CliRunner().invoke(app, [*command, "--reach", "10"])
    assert result.exit_code == 0, result.output
    heading, truncated, synthetic, *sentence = result.stdout.splitlines()
    assert heading.split()[:3] == ["run", "gradient", "cosine"]
    assert truncated.split()[:2] == ["run", "truncated"]
    assert synthetic.split()[:2] == ["run", "synthetic"]
    assert "64 windows are too few to distinguish" in " ".join(sentence)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "1 part, about" in result.stderr
    written = json.loads((tmp_path / "gradients.json").read_text())
    assert written["runs"][0]["windows"] == 64
    assert set(written["runs"][0]["by_part"]) == {"hidden 1", "hidden 2", "cell 1", "cell 2"}
    assert (tmp_path / "gradients.png").exists()
    again = CliRunner().invoke(app, [*command, "--reach", "10", "--json"])
    assert json.loads(again.stdout) == written
    assert "about 0:00" in again.stderr  # nothing was computed again


def test_a_snapshot_and_a_run_without_its_checkpoint_show_truncation_alone(
    run: Path, tmp_path: Path
) -> None:
    snapshots = gradients([run], snapshots=True, windows=64, reach=5)
    assert [each["run"] for each in snapshots.runs] == ["run@cycle-000", "run@cycle-001"]
    assert "a snapshot keeps no synthesizer" in snapshots.summary()
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run/checkpoints")
    alone = gradients([tmp_path / "run"], data=run.parent / "store", windows=64, reach=5)
    assert len(alone.rows()) == 2
    assert "Nothing synthetic was measured: no checkpoint." in alone.summary()


def test_landscape_looks_along_every_gradient(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("LENGTHS", (0.001, 0.01)), ("ALONG", (0.0, 0.01)), ("ASIDE", (0.0, 0.01))):
        monkeypatch.setattr(landscape_lines, name, few)
    prepared: list[str] = []
    load = landscape_analysis.load_trained

    def counted(subject: Subject) -> Trained:
        prepared.append(subject.name)
        return load(subject)

    monkeypatch.setattr(landscape_analysis, "load_trained", counted)
    result = CliRunner().invoke(app, ["analyze", "landscape", str(run), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = [line.split()[:3] for line in result.stdout.splitlines()[1:7]]
    assert prepared == ["run"], "lines and planes share what is read"
    kinds = ("truncated", "long", "synthetic")
    ends = landscape([run], snapshots=True)
    assert prepared[1:] == ["run@cycle-000", "run@cycle-001"]
    assert {(row[0], row[1]) for row in ends.rows()[1:]} == {
        (f"run@cycle-{cycle:03d}", kind) for cycle in (0, 1) for kind in kinds[:2]
    }
    assert rows == [["run", kind, batches] for kind in kinds for batches in ("1", "32")]
    assert "lowest loss on other text along each gradient" in result.stdout
    found = json.loads((tmp_path / "landscape.json").read_text())
    written = found["runs"][0]
    assert written["adam"]
    assert written["update_length"] > 0
    for kind in kinds:
        line = written["lines"][kind]["32"]
        assert line["own_change"][0] < 0  # a small step down helps the windows that asked for it
        assert 0 < line["kl"][0] < line["kl"][1]
        assert found["plane"]["change"][kind][0][0] == 0
    assert (tmp_path / "landscape.png").exists()


@pytest.mark.parametrize("what", ["gradients", "landscape"])
def test_what_cannot_be_analysed_is_said_at_once(what: str, run: Path, tmp_path: Path) -> None:
    for given, problem in (
        ([str(tmp_path / "none")], "no run or model at"),
        ([str(run / "model")], "is not a run; give the folder that `sglm train` wrote"),
        ([str(run), str(run)], "was given twice"),
    ):
        result = CliRunner().invoke(app, ["analyze", what, *given])
        assert result.exit_code == 2
        assert problem in result.stderr
        assert len(result.stderr.splitlines()) <= 2


def test_a_checkpoint_of_another_network_is_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    config = tmp_path / "run/config.toml"
    config.write_text(config.read_text().replace("hidden = 8", "hidden = 9"))
    result = CliRunner().invoke(
        app, ["analyze", "gradients", str(tmp_path / "run"), "--data", str(run.parent / "store")]
    )
    assert result.exit_code == 2
    assert "its checkpoint does not fit its configuration" in result.stderr
