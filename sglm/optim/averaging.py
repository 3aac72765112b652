"""A running mean of the weights, which predicts better than the last ones where the rate is high.

A constant rate leaves the weights going around a minimum, and their mean is nearer to it (Polyak &
Juditsky 1992). Merity, Keskar & Socher 2018 (sec. 3) start a plain mean once validation stops
improving; here old weights are forgotten in proportion to the run's age (polynomial decay: Shamir &
Zhang 2013), so that there is no such moment to choose and the mean can be used at any time.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from sglm.model.language_model import LSTMLanguageModel

EVERY_STEPS = 5  # neighbouring weights are nearly the same: a mean of each fifth is as good


class WeightAverage:
    """The mean of a model's weights, itself a model.

    Args:
        model: whose weights are averaged, before it has any process to share with.
        memory: fraction of the steps so far that the mean reaches back.
    """

    def __init__(self, model: LSTMLanguageModel, *, memory: float) -> None:
        def forget(means: Sequence[Tensor], weights: Sequence[Tensor], taken: Tensor | int) -> None:
            share = 1 / (memory * torch.as_tensor(taken)).clamp_min(1.0)
            for mean, weight in zip(means, weights, strict=True):
                mean.lerp_(weight, share)  # not as a number, for which the device would be waited

        self._averaged = AveragedModel(model, multi_avg_fn=forget)

    def follow(self, model: LSTMLanguageModel, step: int) -> None:
        """Takes the weights in, at every few steps.

        Args:
            model: that is averaged.
            step: steps done.
        """
        if step % EVERY_STEPS == 0:
            self._averaged.update_parameters(model)

    @property
    def model(self) -> LSTMLanguageModel | None:
        """With the mean for weights; None before there is one."""
        if not self._averaged.n_averaged:
            return None
        return cast(LSTMLanguageModel, self._averaged.module)

    def state_dict(self) -> dict[str, Tensor]:
        """To be saved."""
        return self._averaged.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Puts `state_dict` back."""
        self._averaged.load_state_dict(state)
