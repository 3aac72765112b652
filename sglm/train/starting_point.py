"""The weights of a trained model that a training starts from, in place of random ones."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sglm.config import Config
from sglm.errors import ConfigError, InputError
from sglm.model.folder import (
    ModelCard,
    find_model_folder,
    load_weights,
    read_card,
    weights_sha256,
)
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.storage.untrusted import given_path
from sglm.text.store import TokenStore
from sglm.train.build import chooses_cutoffs, model_shape


@dataclass(frozen=True, kw_only=True)
class StartingPoint:
    """A trained model whose weights a training starts from.

    Attributes:
        folder: The model folder.
        card: The content of its `config.json`.
        weights_sha256: The checksum of its weights: a run is continued only with the same weights.
    """

    folder: Path
    card: ModelCard
    weights_sha256: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "StartingPoint":
        """Opens a trained model.

        Args:
            path: A run (its `model/` is taken), a model folder or a snapshot.

        Raises:
            InputError: There is no model there.
        """
        folder = find_model_folder(given_path("a run or a model", path))
        return cls(folder=folder, card=read_card(folder), weights_sha256=weights_sha256(folder))

    def matching_config(self, config: Config, store: TokenStore) -> Config:
        """Returns the configuration, with the trained model's cutoffs if it does not set them.

        Raises:
            InputError: The store was made by another tokenizer than the model's.
            ConfigError: The configuration describes a network of another shape.
        """
        if store.tokenizer().fingerprint != self.card.tokenizer_fingerprint:
            raise InputError(
                f"{store.folder}: was made by another tokenizer than {self.folder}; make the store"
                f" with `sglm prep … --tokenizer-of {self.folder}`"
            )
        shape = self.card.model_shape()
        config = with_cutoffs_of(shape, config)
        softmax = "adaptive" if shape.cutoffs else "full"
        differing: dict[str, Any] = {}
        sizes = config
        if config.model.softmax != softmax:
            differing["softmax"] = softmax
            if config.model.cutoffs is not None:
                differing["cutoffs"] = "none"
            plain = {"softmax": "full", "cutoffs": None}
            sizes = config.model_copy(update={"model": config.model.model_copy(update=plain)})
            shape = replace(shape, cutoffs=())
        own, wanted = asdict(shape), asdict(model_shape(sizes, shape.vocab_size))
        differing |= {name: own[name] for name in own if own[name] != wanted[name]}
        if differing:
            cures = " ".join(f"--set model.{k}={_in_toml(v)}" for k, v in differing.items())
            raise ConfigError(
                f"{self.folder}: is a network of another shape than the configuration's; give its"
                f" run's config.toml, or {cures}"
            )
        return config

    def copy_into(self, model: LSTMLanguageModel) -> None:
        """Replaces the model's weights by these.

        Raises:
            InputError: The weights are damaged.
        """
        model.load_state_dict(load_weights(self.folder, model.embedding.device).state_dict())


def with_cutoffs_of(shape: ModelShape, config: Config) -> Config:
    """Returns the configuration, with a trained model's cutoffs if it does not set them."""
    if not (shape.cutoffs and chooses_cutoffs(config)):
        return config
    model = config.model.model_copy(update={"cutoffs": list(shape.cutoffs)})
    return config.model_copy(update={"model": model})


def _in_toml(value: Any) -> str:
    """Returns the value as `--set` takes it, without spaces."""
    if isinstance(value, tuple):
        return str(list(value)).replace(" ", "")
    return str(value).lower()
