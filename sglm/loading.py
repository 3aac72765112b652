"""`sglm.load`: loads a model folder as a `LanguageModel`."""

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
    """Loads a trained model.

    >>> lm = sglm.load("runs/tiny")
    >>> lm.score("the cat sat").ppl

    Args:
        path: A run (its best model, in `model/`, is loaded), a snapshot, or any other model folder,
            wherever it was copied to.
        device: `"auto"` (the GPU if torch sees one, otherwise the CPU), `"cpu"`, `"cuda"`,
            `"cuda:1"`, or a `torch.device`.

    Returns:
        The model with its tokenizer, ready to score, evaluate and continue texts.

    Raises:
        InputError: There is no model at `path`, it is damaged, or the device does not exist.
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
    lm = LanguageModel(
        NetworkPredictor(load_weights(folder, where)),
        tokenizer=tokenizer,
        name=os.fspath(path),
        training_lines=find_training_lines(folder),
        bos_id=card.extra.get("bos_id"),
    )
    lm.folder = folder
    return lm
