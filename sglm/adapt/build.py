"""Builds an adapting predictor from a kind of adaptation and its settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sglm.adapt.cache import CacheReader, refuse_if_too_large
from sglm.adapt.dynamic import DynamicReader
from sglm.adapt.folder import load_gradients
from sglm.adapt.gradients import GradientSizes, gradient_sizes, rms_rule, sgd_rule
from sglm.adapt.reader import AdaptingPredictor, LaneReader, StaticReader
from sglm.adapt.settings import checked_kind, checked_settings
from sglm.adapt.synthetic import SyntheticReader
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.text.store import TokenStore


class Adaptation:
    """An adaptation of one model; the files and measurements that it needs are read or made once.

    Attributes:
        kind: Kind of adaptation, one of `KINDS`.
        settings: All settings, including defaults; tuning replaces them.
    """

    def __init__(
        self,
        kind: str,
        *,
        network: LSTMLanguageModel,
        settings: Mapping[str, Any],
        folder: Path | None = None,
        train: TokenStore | None = None,
    ) -> None:
        """
        Args:
            kind: Kind of adaptation, one of `KINDS`.
            network: The loaded network; it is not changed.
            settings: Settings that differ from the defaults.
            folder: Folder of the model, which also holds the network for `synthetic`.
            train: Store on whose training split the RMS rule measures gradients.

        Raises:
            InputError: A kind or setting is unknown or out of range, the cache is larger than half
                of the memory, or the network for `synthetic` is missing or belongs to another
                model.
        """
        self.kind = checked_kind(kind)
        self.network = network
        self._train = train
        self._sizes: GradientSizes | None = None
        self._sizes_segment = 0
        self.settings = checked_settings(self.kind, settings, has_train=train is not None)
        if "size" in self.settings:
            refuse_if_too_large(self.settings["size"], network)
        if self.kind == "synthetic":
            if folder is None:
                raise InputError(
                    "a model that was not loaded from a folder has no network for synthetic"
                    " gradients; load one on which `sglm adapt-train` was run"
                )
            self._gradients = load_gradients(folder, network)
            if "steps" not in settings:
                self.settings["steps"] = self._gradients.shape.steps

    @property
    def segment(self) -> int:
        """The number of tokens that are read before the predictor learns from them."""
        if self.kind == "cache":
            return 1
        synthetic = self.kind == "synthetic"
        return self._gradients.shape.segment if synthetic else int(self.settings["segment"])

    def predictor(self, **changed: float) -> AdaptingPredictor[Any]:
        """Returns a predictor with these settings, some of them changed."""
        settings = {**self.settings, **changed}
        reader: LaneReader[Any] = StaticReader(self.network)
        if self.kind == "synthetic":
            reader = SyntheticReader(
                self.network, gradients=self._gradients.with_steps(settings["steps"])
            )
        # With a learning rate of zero nothing changes, and the static network suffices.
        if "dynamic" in self.kind and settings["learning_rate"] > 0:
            reader = self._dynamic(settings)
        if "cache" in self.kind:
            reader = CacheReader(
                reader,
                features=self.network.shape.widths[-1],
                size=settings["size"],
                weight=settings["weight"],
                sharpness=settings["sharpness"],
            )
        return AdaptingPredictor(reader, network=self.network)

    def _dynamic(self, settings: Mapping[str, Any]) -> DynamicReader:
        rate, decay, segment = (settings[n] for n in ("learning_rate", "decay", "segment"))
        if settings["rule"] == "sgd":
            rule = sgd_rule(self.network, learning_rate=rate, decay=decay)
        else:
            rule = rms_rule(self._gradient_sizes(segment), learning_rate=rate, decay=decay)
        return DynamicReader(self.network, segment=segment, rule=rule)

    def _gradient_sizes(self, segment: int) -> GradientSizes:
        if self._sizes is None or self._sizes_segment != segment:
            assert self._train is not None  # otherwise the settings were refused
            self._sizes = gradient_sizes(
                self.network,
                self._train.ids("train"),
                bos_id=self._train.bos_id,
                segment=segment,
            )
            self._sizes_segment = segment
        return self._sizes
