"""A running mean of the weights, which predicts better than the last weights if the rate is high.

At a constant rate the weights circle around a minimum, and their mean is nearer to it (Polyak &
Juditsky 1992). Merity, Keskar & Socher 2018 (sec. 3) start a plain mean once validation stops
improving. Here old weights are forgotten in proportion to the run's age (polynomial decay: Shamir &
Zhang 2013), so that there is no such moment to choose and the mean can be used at any time.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sglm.model.language_model import LSTMLanguageModel

EVERY_STEPS = 5  # consecutive weights are nearly the same: a mean over every fifth step is as good


class WeightAverage:
    """A running mean of a model's weights, which is itself a model.

    Args:
        model: The model whose weights are averaged, before its ranks are set.
        memory: Fraction of the steps so far over which the mean reaches back.
    """

    def __init__(self, model: LSTMLanguageModel, *, memory: float) -> None:
        def forget(means: Sequence[Tensor], weights: Sequence[Tensor], taken: Tensor | int) -> None:
            share = 1 / (memory * torch.as_tensor(taken)).clamp_min(1.0)
            for mean, weight in zip(means, weights, strict=True):
                mean.lerp_(weight, share)  # a tensor: a Python number would wait for the device

        self._averaged = AveragedModel(model, multi_avg_fn=forget)

    def update(self, model: LSTMLanguageModel, step: int) -> None:
        """Updates the mean with the model's weights, once every `EVERY_STEPS` steps.

        Args:
            model: The model that is averaged.
            step: Number of steps done.
        """
        if step % EVERY_STEPS == 0:
            self._averaged.update_parameters(model)

    @property
    def model(self) -> LSTMLanguageModel | None:
        """The model with the mean weights; None before there is a mean."""
        if not self._averaged.n_averaged:
            return None
        return cast(LSTMLanguageModel, self._averaged.module)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the mean and its count, to be saved."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        self._averaged.load_state_dict(state)
