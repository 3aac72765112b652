"""The base class that lets a language model turn into one that adapts while it reads."""

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
    """The methods of `LanguageModel` that make it adapt while it reads."""

    predictor: Predictor[Any]
    tokenizer: Tokenizer
    name: str
    folder: Path | None = None
    """The folder that the model was loaded from; None if it was not loaded from one."""
    adaptation: Adaptation | None = None
    """The way in which `predictor` adapts while it reads; None if it does not."""

    def adapting(
        self,
        kind: str,
        *,
        train: TokenStore | str | os.PathLike[str] | None = None,
        **settings: float | str,
    ) -> Self:
        """Returns a copy of this model that learns from what it reads; this model never changes.

        Each token is predicted before the copy learns from it. Every text that is scored starts
        from this model; if a state is carried (`extend`, `perplexity`), it includes what was
        learned.

        Args:
            kind: "cache" (continuous cache), "dynamic" (dynamic evaluation), "synthetic" (synthetic
                gradients, by the network that `sglm adapt-train` trained), or "cache,dynamic".
            train: Token store, on whose training split the RMS rule of "dynamic" measures
                gradients. None: the rule is SGD.
            settings: Settings that differ from the defaults: size, weight and sharpness of a cache;
                segment, rule, learning_rate and decay of dynamic evaluation; steps of synthetic
                gradients.

        Raises:
            InputError: A kind or setting is unknown or out of range; the cache is larger than half
                of the memory; the trained network is missing or belongs to another model; the store
                has another tokenizer; this model is not a single network.
        """
        if not isinstance(self.predictor, NetworkPredictor):
            raise InputError(
                "only a single network can adapt, not an ensemble, a mixture or a model that"
                " already adapts; load the model alone"
            )
        if train is not None:
            train = train if isinstance(train, TokenStore) else TokenStore.open(train)
            train.check_made_by(self.tokenizer, self.name)
        return self.with_adaptation(
            Adaptation(
                kind,
                network=self.predictor.model,
                settings=settings,
                folder=self.folder,
                train=train,
            )
        )

    def with_adaptation(self, adaptation: Adaptation) -> Self:
        """Returns a copy of this model that adapts in the given way; see `adapting`."""
        reader = copy.copy(self)
        reader.predictor, reader.adaptation = adaptation.predictor(), adaptation
        return reader

    def _adapted(self, evaluation: "Evaluation") -> "Evaluation":
        """Returns the evaluation with the kind and the settings of the adaptation filled in."""
        if self.adaptation is None:
            return evaluation
        settings = self.adaptation.settings
        return replace(evaluation, adapt=self.adaptation.kind, adapt_settings=settings)
