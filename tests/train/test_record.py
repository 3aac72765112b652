"""A run knows who computed it, and which lines it was trained on."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sglm
from sglm.config import Config
from sglm.errors import Stopped
from sglm.optim.precision import unchecked_precision
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train.loop import train
from sglm.train.record import code_sha256, git_commit, versions
from tests.conftest import make_text

CPU = torch.device("cpu")


def run(config: Config, store: TokenStore, out: Path, **kwargs: Any) -> None:
    train(
        config,
        store,
        out,
        precision=unchecked_precision("fp32", CPU),
        console=io.StringIO(),
        **kwargs,
    )


def sessions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "sessions.jsonl").read_text().splitlines()]


def test_every_session_is_recorded(
    tiny_config: Callable[..., Config], word_store: TokenStore, tmp_path: Path
) -> None:
    config, out = tiny_config(train={"seed": 5}), tmp_path / "run"
    polls = iter([None] * 10 + [15])
    with pytest.raises(Stopped):
        run(config, word_store, out, stop_signal=lambda: next(polls))
    run(config, word_store, out)
    first, second = sessions(out)
    assert first["from_step"] == 0
    assert 0 < second["from_step"] < 40
    for session in (first, second):
        assert session["seed"] == 5
        assert session["corpus_fingerprint"] == word_store.fingerprint
        assert session["command"] == sys.argv
        assert (session["device"], session["precision"]) == ("cpu", "fp32")
        assert (session["processes"], session["threads"]) == (1, 1)
        assert session["deterministic"] is True
        assert session["versions"] == versions("word")
        assert session["started"].endswith("+00:00")
        assert session["platform"]
    run(config, word_store, out)
    assert len(sessions(out)) == 2, "nothing was done, so there is nothing to record"


def test_versions_are_those_that_run() -> None:
    import numpy
    import safetensors
    import sentencepiece

    found = versions("sentencepiece")
    assert found["sglm"] == sglm.__version__
    assert found["python"] == sys.version.split()[0]
    assert found["torch"] == torch.__version__
    assert found["numpy"] == numpy.__version__
    assert found["safetensors"] == safetensors.__version__
    assert found["sentencepiece"] == sentencepiece.__version__
    assert "sentencepiece" not in versions("byte")


def test_the_commit_is_the_one_that_git_says(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null"]
        command = ["git", "-C", str(tmp_path / "repo"), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    (tmp_path / "repo").mkdir()
    try:
        git("init", "-q")
    except FileNotFoundError:
        pytest.skip("needs git")
    assert git_commit(tmp_path / "repo") is None, "nothing is committed yet"
    git("commit", "-q", "--allow-empty", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert git_commit(tmp_path / "repo") == commit
    git("worktree", "add", "-q", "-b", "side/branch", str(tmp_path / "tree"))
    assert git_commit(tmp_path / "tree") == commit
    git("commit", "-q", "--allow-empty", "-m", "two")
    assert git_commit(tmp_path / "repo") == git("rev-parse", "HEAD") != commit
    git("pack-refs", "--all")
    assert git_commit(tmp_path / "repo") == git("rev-parse", "HEAD")
    assert git_commit(tmp_path / "tree") == commit
    git("checkout", "-q", "--detach", commit)
    assert git_commit(tmp_path / "repo") == commit


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"HEAD": "ref: refs/heads/none"},
        {"HEAD": "not a commit"},
        {"HEAD": "ref: refs/heads/main", "refs/heads/main": "../../secret"},
        {"HEAD": "\xff" * 40},
        {"HEAD": "ref: refs/heads/main\0"},
    ],
)
def test_what_is_no_checkout_has_no_commit(tmp_path: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = tmp_path / ".git" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="latin-1")
    assert git_commit(tmp_path) is None


def test_code_is_told_apart_by_content_and_name(tmp_path: Path) -> None:
    found = set()
    for name, content in [("a.py", "1"), ("a.py", "2"), ("b.py", "1")]:
        folder = tmp_path / str(len(found))
        folder.mkdir()
        (folder / name).write_text(content)
        (folder / "note.txt").write_text("of no account")
        found.add(code_sha256(folder))
    assert len(found) == 3


def test_a_run_keeps_its_training_lines_beside_the_model(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    text, other = make_text(400), make_text(100, seed=3) + "a line that nobody was trained on\n"
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    (tmp_path / "other.txt").write_text(other, encoding="utf-8")
    settings = StoreSettings(tokenizer="word", valid=str(tmp_path / "other.txt"), test=0.0)
    store = prepare([str(tmp_path / "train.txt")], tmp_path / "store", settings)
    out = tmp_path / "run"
    run(tiny_config(), store, out)
    known = set(text.splitlines())
    long = [line for line in other.splitlines() if len(line.split()) >= 5]
    expected = (len(long), sum(line in known for line in long))
    assert 0 < expected[1] < expected[0]

    lm = sglm.load(out)
    for found in (lm.perplexity(tmp_path / "other.txt"), lm.evaluate(store, "valid")):
        assert (found.lines, found.lines_in_training) == expected
    snapshot = sglm.load(out / "snapshots" / "cycle-000")
    assert snapshot.perplexity(other).lines_in_training == expected[1]

    # A model that was copied away from its run, or whose run is of an earlier version.
    assert not (out / "model" / "train.lines").exists()
    (out / "model").rename(tmp_path / "copied")
    copied = sglm.load(tmp_path / "copied").perplexity(other)
    assert (copied.lines, copied.lines_in_training) == (len(long), None)
