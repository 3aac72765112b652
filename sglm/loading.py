"""A model folder as a `LanguageModel`."""

import os

import torch

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.model.folder import find_model_folder, load_weights, read_card
from sglm.runtime.device import pick_device
from sglm.scoring.predictor import NetworkPredictor
from sglm.storage.untrusted import given_path
from sglm.text.overlap import find_training_lines
from sglm.text.tokenizer import load_tokenizer


def load(path: str | os.PathLike[str], device: str | torch.device = "auto") -> LanguageModel:
    """The model of a run, or of a model folder wherever it was copied to.

    Args:
        path: a run (its `model/` is taken), a model folder, or a snapshot.
        device: `"auto"`, `"cpu"`, `"cuda"`, or one of torch's.

    Raises:
        InputError: no model there, a damaged one, or no such device.
    """
    where = pick_device(device)
    path = given_path("a run or a model", path)
    folder = find_model_folder(path)
    card = read_card(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != card.tokenizer_fingerprint:
        raise InputError(
            f"{folder}: its tokenizer is not the one the model was trained with "
            f"({tokenizer.description}, not {card.tokenizer_fingerprint[:12]}); copy it again"
        )
    return LanguageModel(
        NetworkPredictor(load_weights(folder, where)),
        tokenizer=tokenizer,
        name=os.fspath(path),
        training_lines=find_training_lines(folder),
        bos_id=card.extra.get("bos_id"),
    ).of_folder(folder)
