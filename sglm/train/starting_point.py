"""Weights to start a training from, in place of random ones: those of a trained model."""

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
        folder: the model folder.
        card: its `config.json`.
        weights_sha256: of its weights: a run is continued only with the same ones.
    """

    folder: Path
    card: ModelCard
    weights_sha256: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "StartingPoint":
        """
        Args:
            path: a run (its `model/` is taken), a model folder or a snapshot.

        Raises:
            InputError: no model there.
        """
        folder = find_model_folder(given_path("a run or a model", path))
        return cls(folder=folder, card=read_card(folder), weights_sha256=weights_sha256(folder))

    def fitted(self, config: Config, store: TokenStore) -> Config:
        """The configuration, with the trained model's cutoffs where it leaves them to be chosen.

        Raises:
            InputError: the store's ids are not the model's.
            ConfigError: the configuration is of a network of another shape.
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
        """Puts the weights in place of the model's.

        Raises:
            InputError: they are damaged.
        """
        model.load_state_dict(load_weights(self.folder, model.embedding.device).state_dict())


def with_cutoffs_of(shape: ModelShape, config: Config) -> Config:
    """The configuration, with a trained model's cutoffs where it leaves them to be chosen."""
    if not (shape.cutoffs and chooses_cutoffs(config)):
        return config
    model = config.model.model_copy(update={"cutoffs": list(shape.cutoffs)})
    return config.model_copy(update={"model": model})


def _in_toml(value: Any) -> str:
    """As it is given to `--set`, without a space."""
    if isinstance(value, tuple):
        return str(list(value)).replace(" ", "")
    return str(value).lower()
