"""What a language model needs to make an adapting reader of itself."""

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sglm.adapt.build import Adaptation
from sglm.errors import InputError
from sglm.scoring.predictor import NetworkPredictor, Predictor
from sglm.text.store import TokenStore
from sglm.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sglm.scoring.results import Evaluation


class Adaptable:
    """Inherited by `LanguageModel`."""

    predictor: Predictor[Any]
    tokenizer: Tokenizer
    name: str
    folder: Path | None = None
    """That the model was loaded from."""
    adaptation: Adaptation | None = None
    """How `predictor` adapts while it reads."""

    def of_folder(self, folder: Path) -> Self:
        """This model, which was loaded from there."""
        self.folder = folder
        return self

    def adapting(
        self,
        kind: str,
        *,
        train: TokenStore | str | os.PathLike[str] | None = None,
        **settings: float | str,
    ) -> Self:
        """A reader that starts as this model and learns from what it reads; this one never changes.

        Each token is predicted before it is learned from. Every text that is scored starts from
        this model; where a state is carried (`extend`, `perplexity`), what was learned is part of
        it.

        Args:
            kind: "cache" (continuous cache), "dynamic" (dynamic evaluation), "synthetic" (synthetic
                gradients, by the network that `sglm adapt-train` trained), or "cache,dynamic".
            train: a token store, on whose training split the RMS rule of "dynamic" measures
                gradients; without it, the rule is SGD.
            settings: size, weight and sharpness of a cache; segment, rule, learning_rate and decay
                of dynamic evaluation; steps of synthetic gradients.

        Raises:
            InputError: an unknown kind or setting, one out of range, a cache larger than memory, no
                trained network or that of another model; a store of another tokenizer; this model
                is not a single network.
        """
        if not isinstance(self.predictor, NetworkPredictor):
            raise InputError(
                "only a single network can adapt, no ensemble, mixture or reader that already does;"
                " load the model alone"
            )
        if train is not None:
            train = train if isinstance(train, TokenStore) else TokenStore.open(train)
            train.check_made_by(self.tokenizer, self.name)
        return self.reading_by(
            Adaptation(
                kind,
                network=self.predictor.model,
                settings=settings,
                folder=self.folder,
                train=train,
            )
        )

    def reading_by(self, adaptation: Adaptation) -> Self:
        """`adapting`, with what was prepared for this model."""
        reader = copy.copy(self)
        reader.predictor, reader.adaptation = adaptation.predictor(), adaptation
        return reader

    def _adapted(self, evaluation: "Evaluation") -> "Evaluation":
        """The same evaluation, saying how the model adapted."""
        if self.adaptation is None:
            return evaluation
        settings = self.adaptation.settings
        return replace(evaluation, adapt=self.adaptation.kind, adapt_settings=settings)
