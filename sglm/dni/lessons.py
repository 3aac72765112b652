"""What is read at a boundary, and what is learned from it once the gradient there is observed.

Shapes: B lanes, S coordinates of a lane's state, P lessons, M = P·B states.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sglm.dni.synthesizer import Prediction


class Reading(NamedTuple):
    """What was read at one boundary, kept until the gradient there is observed.

    Attributes:
        state_BS: the packed state.
        memory: what a recurrent synthesizer was given with it, or None.
        place: the boundary's place in its stretch.
        gradient_BS: the prediction, where it had to be made; None where it can be made when needed.
    """

    state_BS: Tensor
    memory: Tensor | None
    place: int
    gradient_BS: Tensor | None


class Lesson(NamedTuple):
    """A reading and what should have been predicted.

    Attributes:
        state_BS, memory, place: of the reading.
        observed_BS: the target.
        next_BS: the auxiliary target, or None.
        counts: 1, or 0 where the target was not finite (it is zeros then): a scalar.
    """

    state_BS: Tensor
    memory: Tensor | None
    place: int
    observed_BS: Tensor
    next_BS: Tensor | None
    counts: Tensor


def regression_loss(
    lessons: Sequence[Lesson], prediction_MS: Prediction, unit: Tensor | float
) -> Tensor:
    """The mean over lanes of the squared error, in units of what gradients are like: a scalar.

    Lessons that do not count leave it alone; where none counts it is not a number.

    Args:
        lessons: of one or several boundaries.
        prediction_MS: what the synthesizer says of their states now.
        unit: what errors are divided by.
    """
    counts_P = torch.stack([lesson.counts for lesson in lessons])
    lanes = len(lessons[0].state_BS)
    weights_M = counts_P.repeat_interleave(lanes) / (counts_P.sum() * lanes)

    def error(predicted_MS: Tensor, right: list[Tensor]) -> Tensor:
        errors_M = ((predicted_MS - torch.cat(right)) / unit).square().sum(dim=1)
        return (errors_M * weights_M).sum()

    loss = error(prediction_MS.gradient_BS, [lesson.observed_BS for lesson in lessons])
    foreseen = [lesson.next_BS for lesson in lessons if lesson.next_BS is not None]
    if prediction_MS.next_gradient_BS is not None and foreseen:
        loss = loss + error(prediction_MS.next_gradient_BS, foreseen)
    return loss
