"""Probes find what is there and nothing else; `sglm analyze representations` from end to end."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import sglm.analyze
from sglm.analyze.analysis import remaining_seconds
from sglm.analyze.representations import analysis, fields
from sglm.analyze.representations.probes import Question, probe
from sglm.cli.main import app
from sglm.errors import InputError
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train.fit import fit
from tests.conftest import make_text
from tests.extras.conftest import needs

needs("sklearn")
ROWS, UNITS = 2000, 20


@pytest.mark.parametrize("kind", ["class", "yes or no", "number"])
def test_a_probe_finds_a_planted_feature_and_nothing_in_noise(kind: str) -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(ROWS, UNITS))
    hidden = noise @ rng.normal(size=(UNITS, 3))
    answers: dict[str, Any] = {
        "class": hidden.argmax(1),
        "yes or no": hidden[:, 0] > 3,  # few: it does not pay to say no to all
        "number": hidden[:, 0],
    }
    train_N = np.arange(ROWS) < ROWS // 2
    question = Question(name="planted", kind=kind, answers_N=answers[kind], train_N=train_N)
    assert probe(100 * noise + 7, question) > 0.85
    of_nothing = probe(rng.normal(size=(ROWS, UNITS)), question)
    # Of a thousand positions: three standard errors of a share, and what is fitted to noise.
    assert of_nothing == pytest.approx(question.chance, abs=0.08)
    assert question.chance < 0.6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text(make_text(300), encoding="utf-8")
    (folder / "valid.txt").write_text(make_text(1500, seed=1), encoding="utf-8")
    settings = StoreSettings(tokenizer="word", valid=str(folder / "valid.txt"), test=0)
    return prepare([str(folder / "train.txt")], folder / "store", settings)


@pytest.fixture(scope="module")
def runs(store: TokenStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two seeds with real gradients, one wider, one with a linear synthesizer."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, (seed, hidden, mode) in {
        "real-0": (0, 12, "real"),
        "real-1": (1, 12, "real"),
        "wide": (1, 16, "real"),
        "linear": (2, 12, "synthetic"),
    }.items():
        config = {
            "model": {"layers": 2, "hidden": hidden},
            "train": {"batch": 4, "window": 5, "seed": seed},
            "schedule": {"unit": "steps", "cycles": [60.0], "mode": mode},
            "synthesizer": {"kind": "linear", "probe_every": 2},
        }
        fit(config, store, folder / name)
        found[name] = folder / name
    return found


def test_runs_are_compared_with_seeds_as_the_yardstick(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fields, "PLACES", 4)
    finding = sglm.analyze.representations(list(runs.values()), positions=1024, out=tmp_path)
    found = json.loads((tmp_path / "representations.json").read_text())
    assert (tmp_path / "representations.png").read_bytes().startswith(b"\x89PNG")
    labels = {name: model["label"] for name, model in found["models"].items()}
    assert labels == {"real-0": "real", "real-1": "real", "wide": "real #2", "linear": "synthetic"}
    groups = {(*each["labels"], each["same_seed"]): each["pairs"] for each in found["groups"]}
    assert groups == {
        ("real", "real", False): 1,
        ("real", "real #2", False): 1,
        ("real", "real #2", True): 1,
        ("real", "synthetic", False): 2,
        ("real #2", "synthetic", False): 1,
    }
    for model in found["models"].values():
        assert set(model["probes"]) == {"class", "line"}  # no bracket is open
        assert model["cka"]["hidden 1"]["hidden 1"] == pytest.approx(1)
        # Sentences are much alike: a word itself says where it stands.
        assert model["probes"]["line"]["embedding"] > 0.3
    for pair in found["pairs"]:
        assert pair["kl_nats"] > 0
        assert all(0 < row[name] < 1 for name, row in pair["cka"].items())
    assert set(found["fields"]) == {"linear"}
    field = found["fields"]["linear"]
    assert 0.01 < field["rotation"] < 1
    assert field["exact_rotation"] < 1e-6  # float64's differences
    assert field["exact_explained"] > 0.999
    table = "\n".join(map(" ".join, finding.rows()))
    assert "real – real #2 same 1" in table
    assert "times as far apart in what they predict" in finding.summary()
    ends = sglm.analyze.representations([runs["linear"]], positions=256, snapshots=True).as_json()
    assert {model["label"] for model in ends["models"].values()} >= {"synthetic @0"}
    assert ends["fields"] == {}  # a snapshot keeps no synthesizer
    fewer = analysis.prepare_representations(list(runs.values())[1:], positions=1024)
    assert remaining_seconds(fewer, fewer.parts(), tmp_path) == 0, (
        "what was measured before would be again"
    )


def test_the_command_says_what_it_found_and_what_does_not_fit(
    runs: dict[str, Path], store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analysis, "POSITIONS", 256)
    monkeypatch.setattr(fields, "PLACES", 2)
    without = tmp_path / "linear-without"
    shutil.copytree(runs["linear"], without)
    shutil.rmtree(without / "checkpoints")
    command = ["analyze", "representations", str(runs["real-0"]), str(without)]
    given = ["--data", str(store.folder), "--out", str(tmp_path / "found")]
    result = CliRunner().invoke(app, [*command, *given])
    assert result.exit_code == 0, result.stderr
    assert "is left of linear-without." in result.stdout
    assert "give runs of two modes with two seeds each" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "3 parts" in result.stderr
    again = CliRunner().invoke(app, [*command, *given, "--json"])
    assert json.loads(again.stdout)["fields"] == {"linear-without": None}
    short = tmp_path / "short.txt"
    short.write_text(make_text(100), encoding="utf-8")
    settings = StoreSettings(tokenizer_of=store.folder, valid=str(short), test=0)
    small = prepare([str(short)], tmp_path / "small", settings)
    with pytest.raises(InputError, match="positions in 32 lanes take"):
        sglm.analyze.representations([runs["real-0"]], data=small.folder)
    other = prepare([str(short)], tmp_path / "chars", StoreSettings(tokenizer="char"))
    fit(
        {"train": {"batch": 2}, "schedule": {"unit": "steps", "cycles": [1.0]}},
        other,
        tmp_path / "r",
    )
    with pytest.raises(InputError, match="another tokenizer"):
        sglm.analyze.representations([runs["real-0"], tmp_path / "r"])
    with pytest.raises(InputError, match="not only its model"):
        sglm.analyze.representations([runs["real-0"] / "model"], data=store.folder)
    with pytest.raises(InputError, match="a multiple of 32"):
        sglm.analyze.representations([runs["real-0"]], positions=100)
