"""The models that an analysis examines, and the text that it reads."""

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
from sglm.train.record import training_store
from sglm.train.run_folder import RunFolder

TRAINING_SPLIT = "train"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One of the models that are analysed.

    Attributes:
        name: Name in tables and files: the run's; for a snapshot with `@` and its own name added.
        run: Path that the user gave: a run or a model folder.
        folder: The model folder.
    """

    name: str
    run: Path
    folder: Path

    def load(self, dtype: torch.dtype = torch.float32) -> LSTMLanguageModel:
        """Loads a new copy of the network, in evaluation mode, on the CPU.

        Raises:
            InputError: The model folder is damaged.
        """
        return load_weights(self.folder).to(dtype)

    def config(self) -> Config:
        """Loads the configuration that the run was trained with.

        Raises:
            InputError: `run` is not a run.
        """
        path = RunFolder(self.run).config
        if not path.exists():
            raise InputError(
                f"{self.run}: is not a run; give the folder that `sglm train` wrote, not only its"
                " model"
            )
        return load_config(str(path))

    def fingerprint(self) -> str:
        """Returns a hash of the model's files, which ties saved parts of an analysis to it."""
        return sha256_of(self.folder / CONFIG_FILE, self.folder / WEIGHTS_FILE)


def find_subjects(
    runs: Sequence[str | os.PathLike[str]], *, snapshots: bool = False
) -> list[Subject]:
    """Finds the models of the given runs.

    Args:
        runs: Folders that `sglm train` wrote; also model folders, unless snapshots are asked for.
        snapshots: Whether to take the snapshots of each run, the earliest first, instead of its
            best model.

    Raises:
        InputError: `runs` is not a list, is empty or names a run twice; a run has no model or no
            snapshots; the models have different tokenizers.
    """
    if isinstance(runs, str | os.PathLike):  # a string would be read as one run per letter
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
        "analyse together only runs with the same tokenizer (`sglm prep --tokenizer-of RUN` makes"
        " a store with the tokenizer of RUN)",
    )
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    """Returns the folders' names, preceded by as many parent folders as make them unique."""
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
    """Opens the text: the store that was given, or the one that the first run was trained on.

    Raises:
        InputError: There is no such store, or it was made with another tokenizer.
    """
    first = subjects[0]
    store = training_store(first.run) if data is None else TokenStore.open(data)
    store.check_made_by(load_tokenizer(first.folder), first.name)
    return store


def lanes_of(store: TokenStore, lanes: int, steps: int) -> ComingText:
    """Returns the first steps of equal parts of the training text, side by side: `(steps, lanes)`.

    Args:
        store: A store with enough text (`check_length`).
        lanes: Number of parts.
        steps: Number of steps that are taken of each part.
    """
    batcher = Batcher(
        store.ids(TRAINING_SPLIT), batch=lanes, window=steps, bos_id=store.tokenizer().eos_id
    )
    window = batcher.at(0)
    return ComingText(window.inputs_TB, window.targets_TB)


def check_length(store: TokenStore, split: str, *, tokens: int, purpose: str) -> None:
    """Checks that a split has as many tokens as an analysis needs.

    Args:
        store, split: The text.
        tokens: Number of tokens that are needed.
        purpose: A plural phrase for the message that names their use: "32 windows of 5 tokens".

    Raises:
        InputError: The text is too short.
    """
    available = len(store.ids(split))
    if available < tokens:
        raise InputError(
            f"{store.folder}: its {split} text has {available:,} tokens, and {purpose} take"
            f" {tokens:,}; give --data with a longer one"
        )
