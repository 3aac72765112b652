"""Measures the usual size of each weight's gradient, on the training text, and makes rules of it.

Source: Krause et al. 2018 (see `sglm.adapt.dynamic`), section 5.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglm.adapt.dynamic import Rule, loss_gradients
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.predictor import evaluating
from sglm.text.batcher import Batcher

# The part of the training text that is read: lanes in parallel, and segments of each lane.
LANES, SEGMENTS = 32, 50
# A share of the mean root mean square that is added to each one: otherwise weights that hardly ever
# have a gradient would take steps as large as the others. (Krause et al. add 2e-5, about the same.)
EPSILON = 0.1


class GradientSizes(NamedTuple):
    """The root mean squares of the weights' gradients, in the order of the parameters."""

    roots: tuple[Tensor, ...]

    @property
    def mean(self) -> Tensor:
        """The mean over parameters of each one's mean, as in the paper's code."""
        return torch.stack([root.mean() for root in self.roots]).mean()


def gradient_sizes(
    network: LSTMLanguageModel,
    train_N: npt.NDArray[np.unsignedinteger],
    *,
    bos_id: int,
    segment: int,
) -> GradientSizes:
    """Measures gradients on `LANES` lanes of the training text (fewer of a short text).

    No weight is changed.

    Raises:
        InputError: The text is not longer than a segment.
    """
    if segment >= len(train_N):
        raise InputError(
            f"segment {segment} needs a training text of more than {segment} tokens, but it has"
            f" {len(train_N):,}; take a shorter one"
        )
    lanes = max(1, min(LANES, len(train_N) // (4 * segment)))
    batcher = Batcher(train_N, batch=lanes, window=segment, bos_id=bos_id)
    sums = [torch.zeros_like(weight) for weight in network.parameters()]
    count = min(SEGMENTS, batcher.steps_per_epoch)
    with evaluating(network):
        state = network.start_state(lanes)
    for step in range(count):
        window = batcher.at(step).to(network.embedding.device)
        with evaluating(network):
            gradients = loss_gradients(network, window.inputs_TB, window.targets_TB, state=state)
            _, state = network.features(window.inputs_TB, state)
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient**2)
    return GradientSizes(tuple((total / count).sqrt().detach() for total in sums))


def rms_rule(sizes: GradientSizes, *, learning_rate: float, decay: float) -> Rule:
    """Returns a rule whose steps are relative to the usual size of each weight's gradient.

    Weights with usually large gradients are pulled back faster, but no farther than to the trained
    weight.
    """
    mean = sizes.mean
    return Rule(
        learning_rate=learning_rate,
        scale=[root + EPSILON * mean for root in sizes.roots],
        pull=[(decay * root / mean).clamp(max=1.0) for root in sizes.roots],
    )


def sgd_rule(network: LSTMLanguageModel, *, learning_rate: float, decay: float) -> Rule:
    """Returns a rule with the same scale and pull for every weight."""
    weights = list(network.parameters())
    return Rule(
        learning_rate=learning_rate,
        scale=[weight.new_ones(()) for weight in weights],
        pull=[weight.new_full((), decay) for weight in weights],
    )
