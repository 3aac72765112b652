"""How large the gradient of each weight usually is: measured on the training text, once.

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

# Of the training text: so many lanes side by side, so many segments of each.
LANES, SEGMENTS = 32, 50
# Keeps weights that hardly ever have a gradient from taking steps as large as all others: a share
# of the mean root mean square. (Krause et al. have a constant, 2e-5, which is about that.)
EPSILON = 0.1


class GradientSizes(NamedTuple):
    """The root mean square of each weight's gradient, in the order of the parameters."""

    roots: tuple[Tensor, ...]

    @property
    def mean(self) -> Tensor:
        """Of the parameters' own means, as the paper's code has it."""
        return torch.stack([root.mean() for root in self.roots]).mean()


def gradient_sizes(
    network: LSTMLanguageModel,
    train_N: npt.NDArray[np.unsignedinteger],
    *,
    bos_id: int,
    segment: int,
) -> GradientSizes:
    """Reads `LANES` lanes of the training text, or fewer of a short one, and learns nothing.

    Raises:
        InputError: the text is shorter than a segment.
    """
    if segment >= len(train_N):
        raise InputError(
            f"segment {segment} is longer than the training text of {len(train_N):,} tokens; take"
            " a shorter one"
        )
    lanes = max(1, min(LANES, len(train_N) // (4 * segment)))
    batcher = Batcher(train_N, batch=lanes, window=segment, eos_id=bos_id)
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
    """Steps relative to the usual size of a weight's gradient; weights whose gradients are usually
    large are drawn back faster, none farther than to the trained weight."""
    mean = sizes.mean
    return Rule(
        learning_rate=learning_rate,
        scale=[root + EPSILON * mean for root in sizes.roots],
        pull=[(decay * root / mean).clamp(max=1.0) for root in sizes.roots],
    )


def sgd_rule(network: LSTMLanguageModel, *, learning_rate: float, decay: float) -> Rule:
    """The same step for every weight."""
    weights = list(network.parameters())
    return Rule(
        learning_rate=learning_rate,
        scale=[weight.new_ones(()) for weight in weights],
        pull=[weight.new_full((), decay) for weight in weights],
    )
