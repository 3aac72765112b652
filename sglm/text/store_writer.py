"""Writes a token store: a folder that appears complete, or not at all."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglm.errors import InputError
from sglm.storage.durable import sync, try_lock
from sglm.storage.names import META_FILE
from sglm.text.overlap import lines_file
from sglm.text.store import (
    FORMAT_VERSION,
    ID_TYPES,
    SPLITS,
    SplitCounts,
    id_type_name,
    ids_file,
    is_store,
)
from sglm.text.tokenizer_interface import (
    CARD_FILE,
    HF_FILE,
    SENTENCEPIECE_FILE,
    VOCABULARY_FILE,
    Tokenizer,
)

WRITTEN_AT_ONCE = 1 << 16
SplitEntry = dict[str, int | str | None]  # the entry of a split in meta.json
OWN_FILES = {
    *(META_FILE, *map(ids_file, SPLITS), *map(lines_file, SPLITS)),
    *(CARD_FILE, VOCABULARY_FILE, SENTENCEPIECE_FILE, HF_FILE),
}


class SplitWriter:
    """A writer that appends ids to one split's file and counts them; as a context manager, it
    closes the file."""

    def __init__(self, path: Path, *, tokenizer: Tokenizer) -> None:
        self._file = path.open("wb")
        self._id_type = ID_TYPES[id_type_name(tokenizer)]
        self._unknown_id = tokenizer.unk_id
        self._is_text = tokenizer.is_text
        self._sha256 = hashlib.sha256()
        self._waiting: list[int] = []
        self._tokens = self._words = self._bytes = self._unknown = 0

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, ids: Sequence[int], words: int, text_bytes: int) -> None:
        """Appends the ids of a part of the text, which has `words` words and `text_bytes` bytes."""
        self._waiting.extend(ids)
        self._words += words
        self._bytes += text_bytes
        if len(self._waiting) >= WRITTEN_AT_ONCE:
            self._write()

    def _write(self) -> None:
        array: NDArray[Any] = np.array(self._waiting, dtype=self._id_type)
        self._waiting.clear()
        raw = array.tobytes()
        self._file.write(raw)
        self._sha256.update(raw)
        self._tokens += len(array)
        if self._unknown_id is not None:
            self._unknown += int((array == self._unknown_id).sum())

    def finish(self) -> SplitEntry:
        """Waits until everything is on the disk; returns the split's entry in `meta.json`."""
        self._write()
        self._file.flush()
        os.fsync(self._file.fileno())
        counts = SplitCounts(self._tokens, self._words, self._bytes, self._unknown)
        if not self._is_text:
            counts = counts.without_text()
        return {**counts._asdict(), "sha256": self._sha256.hexdigest()}


def write_meta(folder: Path, tokenizer: Tokenizer, splits: dict[str, SplitEntry]) -> None:
    """Writes `meta.json`, which makes the folder a store."""
    meta = {
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
        },
        "dtype": id_type_name(tokenizer),
        "splits": splits,
    }
    (folder / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")


def refuse_occupied(out: Path, force: bool) -> None:
    """Checks that a store may be written at `out`.

    Raises:
        InputError: `out` is a store (unless `force`), holds anything else (always: nothing that
            sglm did not make is ever deleted), is the current folder, or cannot be a folder.
    """
    if out.is_dir() and out.samefile("."):
        # The folder would be replaced, and the shell left in one that no longer exists.
        raise InputError(
            f"--out {out}: is the current folder; give one in it: --out {out / 'store'}"
        )
    if is_store(out):
        if not force:
            raise InputError(f"{out}: a store already exists there; --force replaces it")
        if foreign := sorted(
            path.name for path in out.iterdir() if path.name not in OWN_FILES or path.is_dir()
        ):
            raise InputError(
                f"{out}: holds {foreign[0]} besides the store; move it, or choose another --out"
            )
    elif out.is_dir():
        if any(out.iterdir()):
            raise InputError(f"{out}: this folder holds something else; choose another --out")
    else:
        nearest = next(path for path in (out, *out.resolve().parents) if path.exists())
        if not nearest.is_dir():
            raise InputError(f"{nearest}: this is not a folder; choose another --out")


@contextlib.contextmanager
def store_being_written(out: Path, force: bool) -> Iterator[Path]:
    """Yields a temporary folder beside `out`, and renames it to `out` when the block ends without
    an error.

    Whatever ends the block, the temporary folder is gone afterwards; one that a killed process
    left behind is removed by the next call for the same `out`.

    Raises:
        InputError: `out` is occupied; see `refuse_occupied`.
    """
    refuse_occupied(out, force)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.prep-"
    _clear_up(out, prefix)
    refuse_occupied(out, force)
    with _locked_path(out.parent, prefix) as folder:
        try:
            folder.mkdir()
            yield folder
            refuse_occupied(out, force)  # hours may have passed
            for path in (*folder.iterdir(), folder):
                sync(path)
            _move_into_place(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked_path(parent: Path, prefix: str) -> Iterator[Path]:
    """Yields a path for a temporary folder. This process locks a file beside it, of the same name
    with `.lock`, so that no other process deletes the folder as a leftover."""
    while True:
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=".lock", dir=parent)
        with contextlib.suppress(OSError):  # raised on a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):  # no other process removed it before it was locked
            break
        os.close(descriptor)
    try:
        yield Path(name).with_suffix("")
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)


def _clear_up(out: Path, prefix: str) -> None:
    """Cleans up after killed processes: deletes temporary folders, and puts back a store that was
    moved aside by `force`."""
    for path in sorted(out.parent.glob(f"{glob.escape(prefix)}*")):
        if path.name.endswith("-old"):
            if out.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(out)
        elif path.suffix == ".lock":
            with contextlib.suppress(OSError), path.open("r+") as lock:
                if try_lock(lock):  # otherwise its process is alive
                    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                    path.unlink()
        elif not Path(f"{path}.lock").exists():
            shutil.rmtree(path, ignore_errors=True)


def _move_into_place(folder: Path, out: Path) -> None:
    """Renames `folder` to `out`; an old store is moved aside first and deleted last."""
    if not is_store(out):
        folder.rename(out)  # onto nothing, or onto an empty folder
    else:
        aside = folder.with_name(f"{folder.name}-old")
        out.rename(aside)
        try:
            folder.rename(out)
        except BaseException:
            aside.rename(out)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync(out.parent)
