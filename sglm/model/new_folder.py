"""A new model folder, tokenizer included, that appears whole or not at all."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel
from sglm.storage.durable import remove, sync


class _Tokenizer(Protocol):
    """What is needed of one of `sglm.text`, which the models do not know."""

    @property
    def fingerprint(self) -> str: ...

    def save(self, folder: Path) -> None: ...


def write_new_folder(
    model: LSTMLanguageModel,
    folder: Path,
    tokenizer: _Tokenizer,
    *,
    aside: Path,
    extra: Mapping[str, Any],
) -> None:
    """Writes a model folder that can be loaded by itself, wherever it is copied.

    Args:
        model, extra: as for `save_model`.
        folder: where to; nothing is there yet.
        tokenizer: whose ids the model reads.
        aside: a path beside `folder` where it is made and synced before it is renamed; nobody else
            uses it, and what a killed process left there is removed.

    Raises:
        OSError, InputError: the files cannot be written; nothing is left aside, as after any other
            exception.
    """
    if aside.exists():
        remove(aside)
    try:
        aside.mkdir(parents=True)
        save_model(model, aside, tokenizer.fingerprint, extra=extra)
        tokenizer.save(aside)
        for path in (*aside.iterdir(), aside):
            sync(path)
        aside.rename(folder)
        sync(folder.parent)
    except BaseException:  # Ctrl-C too; and it may be what fills the disk
        shutil.rmtree(aside, ignore_errors=True)
        raise
