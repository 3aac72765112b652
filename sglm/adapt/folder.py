"""Saves and loads the network of `sglm.adapt.synthetic`, beside the model that it belongs to.

`adapt.json` describes the network and identifies the model, `adapt.safetensors` holds the weights;
nothing is pickled.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from sglm.adapt.synthetic import GradientsShape, SyntheticGradients
from sglm.errors import InputError
from sglm.model.folder import read_tensors, weights_sha256
from sglm.model.language_model import LSTMLanguageModel
from sglm.storage.durable import replace_file, replace_text, write_tensors
from sglm.storage.untrusted import read_json

FORMAT_VERSION: Literal[1] = 1
CARD_FILE = "adapt.json"
GRADIENTS_FILE = "adapt.safetensors"
_Size = Annotated[int, Field(ge=1, le=2**24)]
_Few = Annotated[int, Field(ge=0, le=1000)]
_Horizon = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Shape(BaseModel):
    """`GradientsShape` as stored in a file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    vocab_size: _Size
    features: _Size
    steps: _Few
    segment: Annotated[int, Field(ge=1, le=2**16)]
    horizons: Annotated[list[_Horizon], Field(min_length=1, max_length=16)]
    hidden: Annotated[int, Field(ge=1, le=4096)]


class _Card(BaseModel):
    """The content of `adapt.json`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format_version: Literal[1]
    weights_sha256: str
    """The hash of the model's weights file."""
    shape: _Shape


def save_gradients(gradients: SyntheticGradients, model_folder: Path) -> None:
    """Writes the network beside the model that it was trained for, and replaces an older one.

    Raises:
        OSError: The files cannot be written.
    """
    card = _Card(
        format_version=FORMAT_VERSION,
        weights_sha256=weights_sha256(model_folder),
        shape=_Shape(**{**asdict(gradients.shape), "horizons": list(gradients.shape.horizons)}),
    )
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in gradients.state_dict().items()
    }
    replace_file(model_folder / GRADIENTS_FILE, lambda path: write_tensors(path, tensors))
    replace_text(model_folder / CARD_FILE, json.dumps(card.model_dump(), indent=2) + "\n")


def load_gradients(model_folder: Path, network: LSTMLanguageModel) -> SyntheticGradients:
    """Loads the network that was trained for the model in this folder, which is `network`.

    Raises:
        InputError: The network is missing, damaged, or belongs to another model.
    """
    again = f"train one with `sglm adapt-train {model_folder}`"
    path, weights = model_folder / CARD_FILE, model_folder / GRADIENTS_FILE
    if not (path.is_file() and weights.is_file()):
        raise InputError(f"{model_folder} has no trained network for synthetic gradients; {again}")
    try:
        card = _Card.model_validate(read_json(path))
    except (ValidationError, ValueError):
        raise InputError(f"{path} is damaged, or of another version of sglm; {again}") from None
    shape = GradientsShape(**{**card.shape.model_dump(), "horizons": tuple(card.shape.horizons)})
    of_network = (network.shape.vocab_size, network.shape.widths[-1])
    if (shape.vocab_size, shape.features) != of_network or (
        card.weights_sha256 != weights_sha256(model_folder)
    ):
        raise InputError(f"{path} does not belong to the model beside it; {again}")
    # The caller may be in inference mode, and tensors created there cannot be used outside it.
    with torch.inference_mode(False):
        with torch.device("meta"):
            gradients = SyntheticGradients(shape)
        try:
            tensors = read_tensors(weights, gradients.state_dict(), card=CARD_FILE)
        except SafetensorError as error:
            raise InputError(f"{weights} is damaged ({error}); {again}") from None
        gradients.load_state_dict(tensors, assign=True)
        return gradients.to(network.embedding.device).requires_grad_(False)
