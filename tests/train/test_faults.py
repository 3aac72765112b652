"""What machines do to a training: failing writes, second trainings, damage."""

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from sglm.cli.main import app
from sglm.storage import durable
from sglm.storage.checkpoint import load_checkpoint
from sglm.text.store import TokenStore
from sglm.train.run_folder import RunFolder

SMALL = [
    *("--set", "model.hidden=8", "--set", "schedule.unit=steps", "--set", "schedule.cycles=[2, 2]"),
    *("--set", "train.batch=4", "--set", "train.window=5", "--set", "train.log_every_steps=1"),
    *("--set", "train.checkpoint_every_steps=1", "--set", "train.evaluate_every_steps=2"),
]


EVERY = int(os.environ.get("SGLM_EVERY_FAULT", "4"))  # of a run's writes fails; 1 takes a minute


def train(store: TokenStore, out: Path) -> Result:
    command = ["train", "tiny", "--data", str(store.folder), "--out", str(out), *SMALL]
    return CliRunner().invoke(app, command)


class FailingDisk:
    """Counts what changes files under a folder; lets the n-th of them fail."""

    def __init__(self, folder: Path, fails_at: int | None, number: int) -> None:
        self.folder, self.fails_at, self.number, self.count = str(folder), fails_at, number, 0
        self.failed: str | None = None

    def _check(self, name: str, path: Any) -> bool:
        if name == "fsync":
            path = os.readlink(f"/proc/self/fd/{path}")
        if not (isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)):
            return False
        self.count += 1
        if self.count != self.fails_at:
            return False
        self.failed = f"{name} {path}"
        return True

    def wrap(self, name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self._check(name, path):
                named = () if name == "fsync" else (str(path),)  # as the system says it
                raise OSError(self.number, os.strerror(self.number), *named)
            return plain(path, *args, **kwargs)

        return call

    def open(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if set(mode) & set("wax") and self._check(f"open {mode}", path):
                # A device that takes no byte: writing fails, not opening.
                mode = mode.replace("x", "w")
                path = "/dev/full"
            return plain(path, mode, *args, **kwargs)

        return call


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FailingDisk]:
    """Installs a failing disk until the next one; None takes it away."""
    names = ("rename", "replace", "mkdir", "symlink", "unlink", "rmdir", "fsync")
    plain = {name: getattr(os, name) for name in names}
    plain_open = builtins.open

    def install(folder: Path, fails_at: int | None, number: int = errno.EIO) -> FailingDisk:
        disk = FailingDisk(folder, fails_at, number)
        for name, function in plain.items():
            monkeypatch.setattr(os, name, disk.wrap(name, function))
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", disk.open(plain_open))
        return disk

    return install


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "last" / "model.safetensors")


def test_whatever_write_fails_the_run_says_so_and_goes_on_afterwards(
    word_store: TokenStore, tmp_path: Path, failing: Callable[..., FailingDisk]
) -> None:
    """Afterwards the same command gives the undisturbed run, bitwise."""
    calm = failing(tmp_path / "calm", None)
    assert train(word_store, tmp_path / "calm").exit_code == 0
    writes = calm.count
    assert writes > 60
    expected = weights(tmp_path / "calm")
    for number in range(1, writes + 1, EVERY):
        out = tmp_path / f"run{number}"
        disk = failing(out, number, errno.ENOSPC if number % 2 else errno.EIO)
        result = train(word_store, out)
        assert disk.failed is not None
        if not (disk.failed.startswith("mkdir") and result.exit_code == 0):  # it was there already
            assert result.exit_code == 1, (disk.failed, result.output)
            assert isinstance(result.exception, SystemExit), disk.failed
            told = result.stderr.splitlines()[-1]
            assert told.startswith("sglm: "), disk.failed
            assert str(out) in told or "/.lock" in disk.failed, (disk.failed, told)  # which file
        failing(out, None)
        load_checkpoint(out / "checkpoints")  # whole, or none yet
        if not disk.failed.startswith(("unlink", "rmdir")):  # of what was to be cleared up
            assert not list(out.glob("checkpoints/*.partial")), disk.failed
        again = train(word_store, out)
        assert again.exit_code == 0, (disk.failed, again.output)
        found = weights(out)
        assert all(torch.equal(found[name], expected[name]) for name in expected), disk.failed


def test_a_second_training_into_one_folder_is_refused(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_WAIT_SECONDS", 0.1)
    out = tmp_path / "run"
    assert train(word_store, out).exit_code == 0
    with durable.locked(out / ".lock"):
        result = train(word_store, out)
    assert result.exit_code == 2
    assert "in use by process" in result.stderr
    assert train(word_store, out).exit_code == 0


def test_how_often_a_run_is_saved_may_change(word_store: TokenStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert train(word_store, out).exit_code == 0
    command = ["train", "tiny", "--data", str(word_store.folder), "--out", str(out), *SMALL]
    command += ["--set", "train.checkpoint_every_steps=3", "--set", "train.keep_checkpoints=5"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, [*command, "--set", "train.batch=5"]).exit_code == 2


def test_a_damaged_checkpoint_is_named_and_the_run_still_ends_as_it_would_have(
    word_store: TokenStore, tmp_path: Path
) -> None:
    assert train(word_store, tmp_path / "whole").exit_code == 0
    assert train(word_store, tmp_path / "run").exit_code == 0
    latest = (tmp_path / "run" / "checkpoints" / "latest").resolve()
    (latest / "state.safetensors").write_bytes(b"rubbish")
    result = train(word_store, tmp_path / "run")
    assert result.exit_code == 0
    assert f"{latest}: damaged checkpoint" in result.stderr
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("state", [{}, [], "text", None, {"progress": 3}, {"progress": {"a": 1}}])
def test_a_whole_checkpoint_of_something_else_is_refused_in_a_line(
    word_store: TokenStore, tmp_path: Path, state: object
) -> None:
    assert train(word_store, tmp_path / "run").exit_code == 0
    RunFolder(tmp_path / "run").save_checkpoint(100, state, keep=2)
    result = train(word_store, tmp_path / "run")
    assert result.exit_code == 2
    assert "does not belong to this run" in result.stderr


def planted(path: Path, kind: str, victim: Path) -> None:
    """Puts a link or a device in the place of a file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link": victim, "endless": "/dev/zero", "nowhere": "/no/such"}[kind])


@pytest.mark.parametrize("kind", ["link", "pipe", "endless", "nowhere"])
def test_a_run_from_elsewhere_is_written_through_no_link_and_read_from_no_device(
    word_store: TokenStore, tmp_path: Path, kind: str
) -> None:
    """In the place of every file of a run, and of those that it would make on the way."""
    made, victim = tmp_path / "made", tmp_path / "victim"
    assert train(word_store, made).exit_code == 0
    names = [str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()]
    names += [".metrics.jsonl.aside", ".sessions.jsonl.aside", ".config.toml.aside"]
    names += ["model/.model.safetensors.aside", "last/.config.json.aside"]
    assert {".lock", "run.json", "metrics.jsonl", "sessions.jsonl"} <= set(names)
    for number, name in enumerate(names):
        run = tmp_path / f"run{number}"
        shutil.copytree(made, run, symlinks=True)
        victim.write_text("precious")
        planted(run / name, kind, victim)
        result = train(word_store, run)
        assert result.exit_code == 2, (name, result.output)
        assert name == "run.json" or "a link or a device" in result.stderr
        assert victim.read_text() == "precious", name


@pytest.mark.parametrize("name", ["model", "last", "checkpoints", "snapshots", "tensorboard"])
def test_a_run_whose_folders_lie_elsewhere_is_not_written_to(
    word_store: TokenStore, tmp_path: Path, name: str
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    assert train(word_store, run).exit_code == 0
    (run / name).rename(elsewhere)
    (run / name).symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    assert train(word_store, run).exit_code == 2
    assert sorted(elsewhere.rglob("*")) == before


def test_a_link_of_ones_own_that_a_kill_left_behind_is_no_obstacle(
    word_store: TokenStore, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(word_store, run).exit_code == 0
    (run / "checkpoints" / "latest.partial").symlink_to("step-000000004")
    assert train(word_store, run).exit_code == 0
    assert not (run / "checkpoints" / "latest.partial").is_symlink()
