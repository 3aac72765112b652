"""The creation of a model folder, tokenizer included, that appears complete or not at all."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel
from sglm.storage.durable import remove, sync


class _Tokenizer(Protocol):
    """The part of a tokenizer that is used here: `sglm.model` does not import `sglm.text`."""

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
        model, extra: See `save_model`.
        folder: Folder to create; it must not exist.
        tokenizer: Tokenizer whose ids the model reads.
        aside: A path beside `folder` where the files are written and synced before the folder is
            renamed. Nothing else may use it; what a killed process left there is removed.

    Raises:
        OSError, InputError: The files cannot be written. After this, as after any other exception,
            nothing is left at `aside`.
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
    except BaseException:  # Ctrl-C too; and the unfinished folder may be what fills the disk
        shutil.rmtree(aside, ignore_errors=True)
        raise
