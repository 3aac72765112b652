"""What travels: the store, and the wheels unpacked, so that a path is all they need."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scripts.gpu_visit import pack
from sglm.errors import InputError, SglmError
from sglm.text.store import TokenStore


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """pip's, which is not called: a wheel with one module comes instead."""
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "x.whl", "w") as wheel:
            wheel.writestr("pydantic/__init__.py", "")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pack.subprocess, "run", download)
    monkeypatch.setattr(pack, "FOLDER", tmp_path / ".gpu")
    return commands


def test_everything_lies_where_the_visit_looks_for_it(
    commands: list[list[str]], word_store: TokenStore, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    (theirs / ".git").mkdir(parents=True)
    (theirs / "arm.py").write_text("")
    told = pack.pack(word_store.folder, other=theirs, python="3.13")
    folder = tmp_path / ".gpu"
    assert (folder / "site/pydantic/__init__.py").exists()
    assert TokenStore.open(folder / "ptb").splits == word_store.splits
    assert [path.name for path in (folder / "other").iterdir()] == ["arm.py"]
    assert not (folder / "wheels").exists()
    assert 'carry [".gpu"]' in told
    (command,) = commands
    assert command[command.index("--python-version") + 1] == "3.13"
    assert all("==" in name for name in command[-len(pack.WHEELS) :])
    earlier = folder / "visit1.jsonl"
    earlier.write_text("")
    pack.pack(word_store.folder)  # anew, but a visit's file stays
    assert earlier.exists()
    assert not (folder / "other").exists()


def test_what_is_too_large_or_cannot_be_had_is_said(
    commands: list[list[str]], word_store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="carry less"):
        pack.pack(word_store.folder)
    refused = subprocess.CompletedProcess([], 1, "", "no matching distribution")
    monkeypatch.setattr(pack.subprocess, "run", lambda *_, **__: refused)
    with pytest.raises(SglmError, match="no matching distribution"):
        pack.pack(word_store.folder)
