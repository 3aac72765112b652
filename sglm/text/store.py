"""Token ids on disk, opened for reading; `store_writer.py` makes them.

`meta.json` describes the folder; `train.bin`, `valid.bin` and `test.bin` hold little-endian ids and
nothing else; the tokenizer's own files lie beside them, and what is remembered of each split's
lines (`overlap.py`).
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np

from sglm.errors import InputError, short_repr
from sglm.storage.untrusted import is_count, is_sha256, read_json
from sglm.text.overlap import LineHashes
from sglm.text.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
CHECKED_BYTES = 1 << 22
# By their names in `meta.json`.
ID_TYPES = {"uint16": "<u2", "uint32": "<u4"}


class SplitCounts(NamedTuple):
    """How much a split holds: ids in its file; words and UTF-8 bytes of the original text; how
    many of the ids are the tokenizer's unknown one."""

    tokens: int
    words: int
    bytes: int
    unknown: int


@dataclass(frozen=True)
class TokenStore:
    """An opened store. Nothing is read into memory: `ids` are mapped from disk."""

    folder: Path
    meta: dict[str, Any]
    _tokenizer: Tokenizer
    _checked: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Which file each split was, when its ids were checked."""

    @classmethod
    def open(cls, folder: Path | str) -> "TokenStore":
        """Opens what `sglm prep` wrote. Reads all ids once: none is outside the vocabulary, and
        they are those that `meta.json` speaks of.

        Raises:
            InputError: not a store, of a later format, incomplete, mixed up or damaged.
        """
        folder = Path(folder)
        meta = _read_meta(folder)
        tokenizer = load_tokenizer(folder)
        store = cls(folder, meta, tokenizer)
        if tokenizer.fingerprint != meta["tokenizer"]["fingerprint"]:
            raise _damaged(folder, "its ids were written with another tokenizer than lies beside")
        for split, facts in meta["splits"].items():
            store._checked[split] = store._check(split, facts["tokens"], facts["sha256"])
        return store

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that are there."""
        return tuple(self.meta["splits"])

    @property
    def fingerprint(self) -> str:
        """Tells this corpus from others: equal when tokenizer and all ids are equal."""
        facts = [f"{split} {self.meta['splits'][split]['sha256']}" for split in self.splits]
        parts = [self.meta["tokenizer"]["fingerprint"], *sorted(facts)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that wrote the ids."""
        return self._tokenizer

    def ids(self, split: str) -> "np.memmap[Any, Any]":
        """All ids of a split, `(tokens,)`, uint16 or uint32, read-only.

        Raises:
            InputError: there is no such split, or its file has changed since the store was opened.
        """
        self._facts(split)
        path = self.folder / f"{split}.bin"
        with path.open("rb") as file:
            if _which(file) != self._checked[split]:
                raise InputError(f"{path}: has changed since the store was opened; start again")
            return np.memmap(file, dtype=ID_TYPES[self.meta["dtype"]], mode="r")

    def counts(self, split: str) -> SplitCounts:
        """How much the split holds.

        Raises:
            InputError: there is no such split.
        """
        facts = self._facts(split)
        return SplitCounts(*(facts[name] for name in SplitCounts._fields))

    def lines(self, split: str) -> LineHashes | None:
        """What is remembered of the split's lines; None in stores that remember none.

        Raises:
            InputError: there is no such split, or it is damaged.
        """
        self._facts(split)
        return LineHashes.read(self.folder / f"{split}.lines")

    def _facts(self, split: str) -> dict[str, Any]:
        if split not in self.meta["splits"]:
            cure = f"; make the store again with --{split}" if split in SPLITS else ""
            raise InputError(
                f"{self.folder}: has no split {split!r}, only {', '.join(self.splits)}{cure}"
            )
        facts: dict[str, Any] = self.meta["splits"][split]
        return facts

    def _check(self, split: str, tokens: int, sha256: str) -> tuple[int, ...]:
        """Which file it is that was found to be right."""
        path = self.folder / f"{split}.bin"
        id_type = np.dtype(ID_TYPES[self.meta["dtype"]])
        expected = tokens * id_type.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected or tokens == 0:
            raise _damaged(self.folder, f"{path.name} holds {size} bytes, not {expected}")
        found, highest, left = hashlib.sha256(), 0, expected
        # Read, not mapped: mapped pages would count as this process's memory.
        with path.open("rb") as file:
            which = _which(file)
            while left and (raw := file.read(min(CHECKED_BYTES, left))):
                found.update(raw)
                left -= len(raw)
                whole = len(raw) - len(raw) % id_type.itemsize
                highest = max(highest, int(np.frombuffer(raw[:whole], id_type).max(initial=0)))
        if highest >= self._tokenizer.vocab_size:
            raise _damaged(
                self.folder,
                f"{path.name} holds the id {highest}, beyond the {self._tokenizer.vocab_size} "
                "of the vocabulary",
            )
        if found.hexdigest() != sha256:
            raise _damaged(self.folder, f"{path.name} is not the file that meta.json speaks of")
        return which


def _which(file: BinaryIO) -> tuple[int, ...]:
    """Tells a file from one that took its place, or that was written to."""
    facts = os.fstat(file.fileno())
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f"{folder}: {what}; make the store again with sglm prep --force")


def is_store(folder: Path) -> bool:
    """Whether `folder` is a token store, whole or damaged."""
    try:
        facts = read_json(folder / "meta.json")
    except (OSError, ValueError, InputError):
        return False
    return _looks_like_meta(facts)


def _looks_like_meta(facts: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(facts, dict) and {"format_version", "tokenizer", "splits"} <= facts.keys()


def _read_meta(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        what = "is a file, not a token store" if folder.exists() else "no such folder"
        raise InputError(f"{folder}: {what}; make a store with sglm prep SOURCE --out {folder}")
    if not (folder / "meta.json").is_file():
        raise InputError(
            f"{folder}: not a token store (no meta.json); make one with sglm prep SOURCE --out DIR"
        )
    try:
        meta = read_json(folder / "meta.json")
    except ValueError:
        meta = None
    if not _looks_like_meta(meta):
        raise InputError(
            f"{folder}: its meta.json is damaged, or not that of a token store; "
            "make a store elsewhere with sglm prep SOURCE --out DIR"
        )
    if meta["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{folder}: a store of format {short_repr(meta['format_version'])}, this version of"
            f" sglm reads {FORMAT_VERSION}; make it again with sglm prep --force, or update sglm"
        )
    if (wrong := _what_is_wrong(meta)) is not None:
        raise _damaged(folder, f"meta.json is damaged ({wrong})")
    return meta


def _what_is_wrong(meta: dict[str, Any]) -> str | None:
    """The names of splits are those of files: no others than we give them, nowhere else."""
    tokenizer, splits = meta["tokenizer"], meta["splits"]
    if not isinstance(tokenizer, dict) or not is_sha256(tokenizer.get("fingerprint")):
        return "tokenizer"
    if not isinstance(dtype := meta.get("dtype"), str) or dtype not in ID_TYPES:
        return f"dtype {short_repr(dtype)}"
    if not isinstance(splits, dict) or not splits.keys() <= set(SPLITS):
        return "splits"
    for split, facts in splits.items():
        if not isinstance(facts, dict) or not is_sha256(facts.get("sha256")):
            return f"split {split}"
        if not all(is_count(facts.get(name)) for name in SplitCounts._fields):
            return f"split {split}"
    return None


def id_type_name(tokenizer: Tokenizer) -> str:
    """The smallest type on disk that holds every id."""
    return "uint16" if tokenizer.vocab_size <= 65_535 else "uint32"
