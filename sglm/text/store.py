"""Reads token stores, folders of token ids that `store_writer.py` writes.

`meta.json` describes the folder; `train.bin`, `valid.bin` and `test.bin` hold little-endian ids and
nothing else. Beside them are the tokenizer's own files and the hashes of each split's lines
(`overlap.py`).
"""

import hashlib
import os
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from sglm.errors import InputError, short_repr
from sglm.storage.digest import sha256_of
from sglm.storage.names import META_FILE, RUN_FILE
from sglm.storage.untrusted import given_path, is_count, is_sha256, read_json
from sglm.text.overlap import LineHashes, lines_file
from sglm.text.tokenizer import Tokenizer, load_tokenizer

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
CHECKED_BYTES = 1 << 22
# The types of ids: numpy types by their names in `meta.json`.
ID_TYPES = {"uint16": "<u2", "uint32": "<u4"}
_HOW_TO_MAKE = "sglm prep SOURCE --out"


def ids_file(split: str) -> str:
    """Returns the name of the file with the ids of a split."""
    return f"{split}.bin"


class SplitCounts(NamedTuple):
    """The counts of a split: ids in its file, words and UTF-8 bytes of the original text (None if
    that consists of ids), and those of the ids that are the tokenizer's unknown one."""

    tokens: int
    words: int | None
    bytes: int | None
    unknown: int

    def without_text(self) -> "SplitCounts":
        """Returns the counts for a text that consists of ids."""
        return self._replace(words=None, bytes=None)


@dataclass(frozen=True, kw_only=True)
class TokenStore:
    """An opened store. Nothing is read into memory: `ids` are mapped from disk."""

    folder: Path
    meta: dict[str, Any]
    _tokenizer: Tokenizer
    _checked: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """The identity of each split's file when its ids were checked."""
    _mapped: "dict[str, np.memmap[Any, Any]]" = field(default_factory=dict)
    """The ids of each split: they stay readable when the store is moved, removed or recreated."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "TokenStore":
        """Opens a store that `sglm prep` wrote. Reads all ids once, to check that none is outside
        the vocabulary, and that their checksums are those in `meta.json`.

        Raises:
            InputError: The folder is not a store, or is of another format, incomplete, mixed up
                with another store or damaged.
        """
        folder = given_path("a token store", folder)
        meta = _read_meta(folder)
        tokenizer = load_tokenizer(folder)
        store = cls(folder=folder, meta=meta, _tokenizer=tokenizer)
        if tokenizer.fingerprint != meta["tokenizer"]["fingerprint"]:
            raise _damaged(folder, "another tokenizer, not the one in it, made its ids")
        for split, facts in meta["splits"].items():
            store._check(split, facts["tokens"], facts["sha256"])
        return store

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that the store has."""
        return tuple(self.meta["splits"])

    @property
    def fingerprint(self) -> str:
        """Identifies the corpus: equal when tokenizer and all ids are equal."""
        sums = [f"{split} {self.meta['splits'][split]['sha256']}" for split in self.splits]
        parts = [self.meta["tokenizer"]["fingerprint"], *sorted(sums)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def tokenizer(self) -> Tokenizer:
        """Returns the tokenizer that made the ids."""
        return self._tokenizer

    def check_made_by(self, tokenizer: Tokenizer, name: str) -> None:
        """Checks that a model can read the store: both must have the same tokenizer.

        Args:
            tokenizer: Tokenizer of the model.
            name: Name of the model, for the message.

        Raises:
            InputError: Another tokenizer made the store.
        """
        own = self._tokenizer
        if own.fingerprint != tokenizer.fingerprint:
            raise InputError(
                f"{self.folder} was made by another tokenizer ({own.description}) than {name}"
                f" ({tokenizer.description}); use the store it was trained on, or make one with"
                " `sglm prep --tokenizer-of RUN`"
            )

    def ids(self, split: str) -> "np.memmap[Any, Any]":
        """Returns all ids of a split, `(tokens,)`, uint16 or uint32, read-only.

        Raises:
            InputError: There is no such split, or its ids have changed since the store was opened.
        """
        facts, path = self._facts(split), self.folder / ids_file(split)
        try:
            identity = _identity(path.stat())
        except OSError:
            return self._mapped[split]  # moved or removed
        checked = self._checked[split]
        if _is_same_file(identity, checked) and identity != checked:
            # Copying or backing up may have touched the file without changing its content.
            if sha256_of(path) != facts["sha256"]:
                raise InputError(f"{path}: has changed since the store was opened; start again")
            self._checked[split] = identity
        return self._mapped[split]

    @cached_property
    def bos_id(self) -> int:
        """The id that stands before the beginning of a text, for a model of the training split:
        `<eos>`, or the newline if the split has newlines but no `<eos>`, which such a model never
        learns."""
        eos_id, newline_id = self._tokenizer.eos_id, self._tokenizer.line_end[-1]
        if newline_id in (eos_id, self._tokenizer.unk_id) or "train" not in self.splits:
            return eos_id
        ids, has_newline = self.ids("train"), False
        for start in range(0, len(ids), CHECKED_BYTES):
            part = np.asarray(ids[start : start + CHECKED_BYTES])
            if bool((part == eos_id).any()):
                return eos_id
            has_newline = has_newline or bool((part == newline_id).any())
        return newline_id if has_newline else eos_id

    def counts(self, split: str) -> SplitCounts:
        """Returns the counts of a split.

        Raises:
            InputError: There is no such split.
        """
        facts = self._facts(split)
        return SplitCounts(*(facts[name] for name in SplitCounts._fields))

    def line_hashes(self, split: str) -> LineHashes | None:
        """Returns the hashes of a split's lines; None for a store without them.

        Raises:
            InputError: There is no such split, or the file of hashes is damaged.
        """
        self._facts(split)
        return LineHashes.read(self.folder / lines_file(split))

    def _facts(self, split: str) -> dict[str, Any]:
        if split not in self.splits:  # a caller in Python may pass any type
            cure = f"; recreate the store with --{split}" if split in SPLITS else ""
            cure += ", or evaluate a text with --text FILE" if split in ("valid", "test") else ""
            raise InputError(
                f"{self.folder}: has no split {split!r}, only {', '.join(self.splits)}{cure}"
            )
        facts: dict[str, Any] = self.meta["splits"][split]
        return facts

    def _check(self, split: str, tokens: int, sha256: str) -> None:
        """Checks a split's file against `meta.json`, and maps it.

        Raises:
            InputError: The content differs, or has ids that are not in the vocabulary.
        """
        path = self.folder / ids_file(split)
        id_type = np.dtype(ID_TYPES[self.meta["dtype"]])
        expected = tokens * id_type.itemsize
        size = path.stat().st_size if path.is_file() else 0
        if size != expected or tokens == 0:
            raise _damaged(self.folder, f"{path.name} holds {size} bytes, not {expected}")
        digest, highest, left = hashlib.sha256(), 0, expected
        # Read, not mapped: mapped pages would count as this process's memory.
        with path.open("rb") as file:
            self._checked[split] = _identity(os.fstat(file.fileno()))
            while left and (raw := file.read(min(CHECKED_BYTES, left))):
                digest.update(raw)
                left -= len(raw)
                whole = len(raw) - len(raw) % id_type.itemsize
                highest = max(highest, int(np.frombuffer(raw[:whole], id_type).max(initial=0)))
            self._mapped[split] = np.memmap(file, dtype=id_type, mode="r")
        if highest >= self._tokenizer.vocab_size:
            raise _damaged(
                self.folder,
                f"{path.name} holds the id {highest}, but the vocabulary has only "
                f"{self._tokenizer.vocab_size} tokens",
            )
        if digest.hexdigest() != sha256:
            raise _damaged(self.folder, f"{path.name} does not match its checksum in meta.json")


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """Returns what stays equal as long as it is the same file and has not been written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_same_file(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[:2] == other[:2]


def _damaged(folder: Path, problem: str) -> InputError:
    return InputError(f"{folder}: {problem}; recreate the store with sglm prep --force")


def is_store(folder: Path) -> bool:
    """Returns whether `folder` is a token store, intact or damaged."""
    try:
        meta = read_json(folder / META_FILE)
    except (OSError, ValueError, InputError):
        return False
    return _looks_like_meta(meta)


def _looks_like_meta(meta: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(meta, dict) and {"format_version", "tokenizer", "splits"} <= meta.keys()


def _read_meta(folder: Path) -> dict[str, Any]:
    if not (folder / META_FILE).is_file():
        raise _no_store(folder)
    try:
        meta = read_json(folder / META_FILE)
    except ValueError:
        meta = None
    if not _looks_like_meta(meta):
        raise InputError(
            f"{folder}: its meta.json is damaged, or not that of a token store; "
            f"make a store elsewhere with {_HOW_TO_MAKE} DIR"
        )
    if meta["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{folder}: a store of format {short_repr(meta['format_version'])}, but this version of"
            f" sglm reads {FORMAT_VERSION}; recreate it with sglm prep --force, or update sglm"
        )
    if (entry := _wrong_entry(meta)) is not None:
        raise _damaged(folder, f"meta.json is damaged ({entry})")
    return meta


def _no_store(folder: Path) -> InputError:
    """Returns the error about a path that is not a store, with the command that makes one."""
    here = shlex.quote(str(folder))
    if not folder.exists():
        return InputError(f"{folder}: no such folder; make a store with {_HOW_TO_MAKE} {here}")
    if not folder.is_dir():
        aside = shlex.quote(str(folder.with_name(f"{folder.name.split('.')[0]}-store")))
        return InputError(
            f"{folder}: is a file, not a token store; make one from it:"
            f" sglm prep {here} --out {aside}"
        )
    if (folder / RUN_FILE).is_file():
        return InputError(f"{folder}: a run, not a token store; give the store it was trained on")
    return InputError(
        f"{folder}: not a token store (no meta.json); make one with {_HOW_TO_MAKE} DIR"
    )


def _wrong_entry(meta: dict[str, Any]) -> str | None:
    """Returns a name for the first entry that `sglm prep` would not have written; None if all are
    right.

    The names of splits become names of files, so only known ones are allowed.
    """
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
        counts = {name: facts.get(name) for name in SplitCounts._fields}
        if tokenizer.get("kind") == "ids" and counts["words"] is counts["bytes"] is None:
            counts |= {"words": 0, "bytes": 0}
        if not all(map(is_count, counts.values())):
            return f"split {split}"
    return None


def id_type_name(tokenizer: Tokenizer) -> str:
    """Returns the name of the smallest type on disk that holds every id."""
    return "uint16" if tokenizer.vocab_size <= 65_535 else "uint32"
