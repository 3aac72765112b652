"""The models that an analysis is asked of, and the text that it reads."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sglm.config import Config, load_config
from sglm.errors import InputError
from sglm.model.folder import (
    WEIGHTS_FILE,
    check_same_tokenizer,
    find_model_folder,
    load_weights,
)
from sglm.model.language_model import LSTMLanguageModel
from sglm.snapshots import snapshot_folders
from sglm.storage.digest import sha256_of
from sglm.storage.names import CONFIG_FILE
from sglm.storage.untrusted import given_path
from sglm.text.batcher import Batcher, ComingText
from sglm.text.store import TokenStore
from sglm.text.tokenizer import load_tokenizer
from sglm.train.record import trained_on
from sglm.train.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One model of those that are analysed.

    Attributes:
        name: in tables and files: the run's, and the snapshot's after an `@`.
        run: what was given.
        folder: the model's.
    """

    name: str
    run: Path
    folder: Path

    def load(self, dtype: torch.dtype = torch.float32) -> LSTMLanguageModel:
        """A network of its own, in evaluation mode, on the CPU.

        Raises:
            InputError: damaged.
        """
        return load_weights(self.folder).to(dtype)

    def config(self) -> Config:
        """What the run was trained with.

        Raises:
            InputError: the model lies in no run.
        """
        path = RunFolder(self.run).config
        if not path.exists():
            raise InputError(
                f"{self.run}: is not a run; give the folder that `sglm train` wrote, not only its"
                " model"
            )
        return load_config(str(path))

    def fingerprint(self) -> str:
        """Of the model: what is kept of an analysis is of this one only."""
        return sha256_of(self.folder / CONFIG_FILE, self.folder / WEIGHTS_FILE)


def find_subjects(
    runs: Sequence[str | os.PathLike[str]], *, snapshots: bool = False
) -> list[Subject]:
    """The models of some runs.

    Args:
        runs: what `sglm train` wrote; without snapshots also model folders.
        snapshots: the models at the ends of their cycles, the earliest first, instead of the best.

    Raises:
        InputError: no list, none, one twice, no model or no snapshots there, or tokenizers that
            differ.
    """
    if isinstance(runs, str | os.PathLike):  # it would be taken for a run for each letter
        raise InputError(f"runs are given as a list: [{str(runs)!r}]")
    paths = [given_path("a run or a model", run) for run in runs]
    if not paths:
        raise InputError("nothing to analyse; give a run")
    names = _names(paths)
    found = []
    for path, name in zip(paths, names, strict=True):
        if snapshots and path.is_dir():
            found += [
                Subject(name=f"{name}@{folder.name}", run=path, folder=folder)
                for folder in snapshot_folders(path)
            ]
        else:
            found.append(Subject(name=name, run=path, folder=find_model_folder(path)))
    check_same_tokenizer(
        {each.name: each.folder for each in found},
        "analyse together only runs on one store (`sglm prep --tokenizer-of RUN` makes another"
        " that fits)",
    )
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of the folders above as tell them apart."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        twice = next(path for path in paths if parts.count(path.resolve().parts) > 1)
        raise InputError(f"{twice}: was given twice; give it once")
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["-".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            break
    return names


def store_of(subjects: Sequence[Subject], data: str | os.PathLike[str] | None = None) -> TokenStore:
    """The text: a store that was given, or the one that the first run was trained on.

    Raises:
        InputError: none, or of another tokenizer.
    """
    first = subjects[0]
    store = trained_on(first.run) if data is None else TokenStore.open(data)
    store.check_made_by(load_tokenizer(first.folder), first.name)
    return store


def lanes_of(store: TokenStore, lanes: int, steps: int) -> ComingText:
    """The first steps of as many equal parts of the training text, side by side: `(steps, lanes)`.

    Args:
        store: the text.
        lanes, steps: of which it has enough (`check_length`).
    """
    batcher = Batcher(
        store.ids("train"), batch=lanes, window=steps, eos_id=store.tokenizer().eos_id
    )
    window = batcher.at(0)
    return ComingText(window.inputs_TB, window.targets_TB)


def check_length(store: TokenStore, split: str, *, tokens: int, purpose: str) -> None:
    """
    Args:
        store, split: the text.
        tokens: that are needed.
        purpose: of them: "so many windows of so many tokens".

    Raises:
        InputError: the text is too short.
    """
    there = len(store.ids(split))
    if there < tokens:
        raise InputError(
            f"{store.folder}: its {split} text has {there:,} tokens, and {purpose} take"
            f" {tokens:,}; give --data with a longer one"
        )
