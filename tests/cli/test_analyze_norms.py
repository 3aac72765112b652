"""`sglm analyze norms`, as users call it, on a run of a second."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.analyze.subjects import Subject
from sglm.cli.main import app
from sglm.text.store import TokenStore

CONFIG = """
[model]
hidden = 8
[train]
batch = 4
window = 5
log_every_steps = 5
[optimizer]
weight_decay = 0.1
weight_decay_until = 0.5
[schedule]
mode = "real"
unit = "steps"
cycles = [10.0]
"""


def test_norms_prints_a_table_and_a_sentence(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    fingerprint = Subject.fingerprint

    def counted(subject: Subject) -> str:
        hashed.append(subject.name)
        return fingerprint(subject)

    monkeypatch.setattr(Subject, "fingerprint", counted)
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    run, store = str(tmp_path / "run"), str(word_store.folder)
    train = ["train", str(tmp_path / "config.toml"), "--data", store, "--out", run]
    assert CliRunner().invoke(app, train).exit_code == 0
    shown = CliRunner().invoke(app, ["analyze", "norms", run])
    assert shown.exit_code == 0, shown.output
    heading, row, *sentence = shown.stdout.splitlines()
    assert heading.split() == ["run", "decay", "‖w‖", "first", "last", "rate", "L2", "sharp", "ppl"]
    assert row.split()[:4] == ["run", "early", "decay", "0.1"]
    assert " ".join(sentence).startswith("run: the weights went from length ")
    assert "1 part, about" in shown.stderr
    assert hashed == ["run@cycle-000"], "a model's files are hashed once per command"
    again = CliRunner().invoke(app, ["analyze", "norms", run, "--json"])
    written = json.loads((tmp_path / "run/analysis/norms.json").read_text())
    assert json.loads(again.stdout) == written
