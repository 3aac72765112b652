"""What gets damaged: copies of a store and of model folders."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sglm.text.store import TokenStore
from tests.tiny_models import save_lm


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model folder with each kind of tokenizer."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_lm(kind, tmp_path_factory.mktemp("models") / kind)
        return made[kind]

    return folder


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes a file of that name and content, and gives its path."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder, which replaces the copy before it."""

    def copy(folder: Path) -> Path:
        target = tmp_path / "spoilt"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(folder, target, symlinks=True))

    return copy


@pytest.fixture
def store_copy(word_store: TokenStore, copies: Callable[[Path], Path]) -> Callable[[], Path]:
    """A copy of a good store."""
    return lambda: copies(word_store.folder)
