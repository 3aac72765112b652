"""A run finds the store that it was trained on, wherever both are, and never takes another."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.config import Config
from sglm.errors import InputError
from sglm.optim.precision import unchecked_precision
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train.loop import train
from sglm.train.record import training_store
from tests.conftest import make_text


@pytest.fixture
def project(
    tiny_config: Callable[..., Config],
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder with `data/store` and `runs/run`; the current folder is beside it."""
    project = tmp_path / "project"
    shutil.copytree(word_store.folder, project / "data" / "store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(
        tiny_config(schedule={"unit": "steps", "cycles": [2.0, 2.0]}),
        TokenStore.open(project / "data" / "store"),
        Path("..", "project", "runs", "run"),
        precision=unchecked_precision("fp32", torch.device("cpu")),
        console=io.StringIO(),
    )
    return project


def test_it_is_found_from_any_folder_by_the_run_or_a_model_in_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("", "model", "last", "snapshots/cycle-000"):
        assert training_store(project / "runs" / "run" / model).folder == project / "data" / "store"
    monkeypatch.chdir(project)
    assert training_store(Path("runs/run")).folder == Path("data/store")  # as people write it


def test_the_command_after_an_average_names_it(project: Path, tmp_path: Path) -> None:
    arguments = ["average", str(project / "runs" / "run"), "--out", str(tmp_path / "mean")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"--data {project / 'data' / 'store'} --split valid" in result.stdout


def test_it_is_found_when_one_or_both_were_moved(project: Path, tmp_path: Path) -> None:
    (project / "runs" / "run").rename(tmp_path / "moved-run")
    assert training_store(tmp_path / "moved-run").folder == project / "data" / "store"
    (tmp_path / "moved-run").rename(project / "runs" / "run")
    moved = project.rename(tmp_path / "moved-project")
    assert training_store(moved / "runs" / "run").folder == moved / "data" / "store"


def test_a_damaged_store_beside_the_right_one_is_passed_over(project: Path) -> None:
    run, store = project / "runs" / "run", project / "data" / "store"
    sessions = run / "sessions.jsonl"
    session = json.loads(sessions.read_text().splitlines()[-1])
    elsewhere = shutil.copytree(store, project / "elsewhere")
    sessions.write_text(json.dumps(session | {"data": str(elsewhere)}) + "\n")
    (store / "train.bin").write_bytes(b"")
    assert training_store(run).folder == elsewhere


def test_what_is_not_found_is_said_with_its_cure(project: Path, tmp_path: Path) -> None:
    run, store = project / "runs" / "run", project / "data" / "store"
    kept = store.rename(tmp_path / "kept")
    with pytest.raises(InputError, match="is not there any more; give --data DIR"):
        training_store(run)
    (tmp_path / "text.txt").write_text(make_text(300, seed=1))
    prepare([str(tmp_path / "text.txt")], store, StoreSettings(tokenizer="word"))
    with pytest.raises(InputError, match="is another corpus now; give --data DIR"):
        training_store(run)
    (store / "train.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"train\.bin"):  # what stands there is damaged
        training_store(run)
    copied = shutil.copytree(run / "model", tmp_path / "copied")
    with pytest.raises(InputError, match=r"is not in a run.*--data DIR"):
        training_store(copied)
    shutil.rmtree(store)
    kept.rename(store)
    for damage in ("", "{}\n", "[]\n", '{"data": "\\u0000", "data_from_run": 3}\n', "\ud800"):
        (run / "sessions.jsonl").write_text(damage, errors="surrogatepass")
        with pytest.raises(InputError, match="give --data DIR"):
            training_store(run)


def test_eval_needs_the_run_alone(project: Path) -> None:
    run = project / "runs" / "run"

    def evaluated(*arguments: object) -> dict[str, object]:
        result = CliRunner().invoke(app, ["eval", *map(str, arguments), "--json"])
        assert result.exit_code == 0, result.stderr
        shown: dict[str, object] = json.loads(result.stdout)
        return {key: value for key, value in shown.items() if key != "seconds"}

    store = project / "data" / "store"
    assert evaluated(run) == evaluated(run, "--data", store, "--split", "test")
    assert evaluated(run, "--split", "valid") == evaluated(run, "--data", store, "--split", "valid")
    assert evaluated(run)["split"] == "test"
