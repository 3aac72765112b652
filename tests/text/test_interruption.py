"""A store is there complete or not at all, whenever and however `prep` ends.

The text comes through a pipe that stays open, so `prep` is certainly in the middle of its work.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from sglm.text import store_writer
from sglm.text.store import TokenStore
from sglm.text.store_writer import store_being_written
from tests.conftest import make_text

Process = subprocess.Popen[bytes]


@pytest.fixture
def working(start_prep: Callable[..., Process], tmp_path: Path) -> Callable[..., Process]:
    """Starts a prep into `store` that waits for more text; returns once it is under way."""

    def start(*arguments: str) -> Process:
        before = leftovers(tmp_path)
        process = start_prep("-", "--out", tmp_path / "store", *arguments)
        assert process.stdin is not None
        process.stdin.write(make_text(500).encode())
        process.stdin.flush()
        deadline = time.monotonic() + 300
        while not any(list(folder.glob("spool/*")) for folder in leftovers(tmp_path) - before):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process

    return start


@pytest.fixture
def prep(run_prep: Callable[..., Result], text_file: Path, tmp_path: Path) -> Callable[..., Result]:
    """Runs a whole prep into `store`."""
    return lambda *arguments: run_prep(text_file, "--out", tmp_path / "store", *arguments)


def leftovers(folder: Path) -> set[Path]:
    return set(folder.glob(".store.prep-*"))


def finish(process: Process) -> str:
    _, stderr = process.communicate(timeout=300)
    return stderr.decode()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing(
    working: Callable[..., Process], tmp_path: Path, number: int, code: int
) -> None:
    process = working()
    process.send_signal(number)
    message = finish(process)
    assert process.returncode == code
    assert message.startswith("sglm: ")
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_prep_leaves_no_store_and_the_next_one_clears_up(
    working: Callable[..., Process], prep: Callable[..., Result], tmp_path: Path
) -> None:
    process = working()
    process.kill()
    finish(process)
    assert not (tmp_path / "store").exists()
    assert len(leftovers(tmp_path)) == 2  # the folder and its lock
    assert prep().exit_code == 0
    TokenStore.open(tmp_path / "store")
    assert leftovers(tmp_path) == set()


def test_a_killed_replacement_leaves_the_old_store(
    working: Callable[..., Process], prep: Callable[..., Result], tmp_path: Path
) -> None:
    out = tmp_path / "store"
    assert prep().exit_code == 0
    before = TokenStore.open(out).fingerprint
    process = working("--force")
    process.kill()
    finish(process)
    assert TokenStore.open(out).fingerprint == before


def test_two_preps_into_one_folder_do_not_disturb_each_other(
    working: Callable[..., Process], prep: Callable[..., Result], tmp_path: Path
) -> None:
    process = working()
    assert prep().exit_code == 0
    before = TokenStore.open(tmp_path / "store").fingerprint
    assert len(leftovers(tmp_path)) == 2  # the living one's, and its lock
    assert "a store already exists there" in finish(process)
    assert process.returncode == 2
    assert TokenStore.open(tmp_path / "store").fingerprint == before
    assert leftovers(tmp_path) == set()


def test_a_store_moved_aside_by_a_killed_replacement_comes_back(
    word_store: TokenStore, prep: Callable[..., Result], tmp_path: Path
) -> None:
    # As a kill between the two renames leaves it.
    (tmp_path / ".store.prep-abc-old").symlink_to(word_store.folder)
    result = prep()
    assert result.exit_code == 2
    assert "a store already exists there" in result.stderr
    assert TokenStore.open(tmp_path / "store").fingerprint == word_store.fingerprint


def test_an_error_while_moving_brings_the_old_store_back(
    prep: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    assert prep().exit_code == 0
    before = TokenStore.open(out).fingerprint
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith("-old"):
            raise OSError("refused")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    assert prep("--force").exit_code == 1
    assert TokenStore.open(out).fingerprint == before
    assert leftovers(tmp_path) == set()


def test_the_store_appears_only_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(store_writer, "sync", synced.append)
    with store_being_written(tmp_path / "store", force=False) as folder:
        assert folder.parent == tmp_path
        (folder / "train.bin").write_bytes(b"")
        assert not (tmp_path / "store").exists()
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["train.bin"]
    # What is written is on the disk before it is moved, and the move itself afterwards.
    assert synced == [folder / "train.bin", folder, tmp_path]
