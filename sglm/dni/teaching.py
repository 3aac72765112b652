"""What is read at a boundary, and what is learned from it once the gradient there is observed.

Shapes: B lanes, S coordinates of a lane's state, P lessons, M = P·B states.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.dni.synthesizer import Prediction
from sglm.runtime.ranks import ALONE, Ranks


class Reading(NamedTuple):
    """What was read at one boundary, kept until the gradient there is observed.

    Attributes:
        state_BS: the packed state.
        memory: what a recurrent synthesizer was given with it, or None.
        place: the boundary's place in its stretch.
    """

    state_BS: Tensor
    memory: Tensor | None
    place: int


class Lesson(NamedTuple):
    """A reading and what should have been predicted.

    Attributes:
        state_BS, memory, place: of the reading.
        observed_BS: the target; a lane with a number that is not finite teaches nothing.
        next_BS: the auxiliary target, in the synthesizer's own unit, or None.
        pure: nothing synthetic went into the target.
        probe: the synthesizer is measured on it.
    """

    state_BS: Tensor
    memory: Tensor | None
    place: int
    observed_BS: Tensor
    next_BS: Tensor | None
    pure: bool
    probe: bool


def regression_loss(
    lessons: Sequence[Lesson], said_MS: Prediction, unit: Tensor, ranks: Ranks = ALONE
) -> Tensor:
    """The mean over lanes of the squared error, in units of what gradients are like: a scalar.

    Where no lane teaches anything it is not a number.

    Args:
        lessons: of one or several boundaries.
        said_MS: what the synthesizer says of their states now, in that unit.
        unit: what observed gradients are divided by.
        ranks: the loss is this rank's; its mean over them is that of all lanes.
    """
    observed_MS = torch.cat([lesson.observed_BS for lesson in lessons]) / unit
    finite_M = torch.isfinite(observed_MS.sum(dim=1))
    count = finite_M.sum().to(observed_MS.dtype)
    ranks.average([count])

    def error(said_MS: Tensor, right_MS: Tensor) -> Tensor:
        # Where there is nothing to learn, it was right to say what it said.
        right_MS = right_MS.where(finite_M[:, None], said_MS.detach())
        return F.mse_loss(said_MS, right_MS, reduction="sum") / count

    loss = error(said_MS.gradient_BS, observed_MS)
    foreseen = [lesson.next_BS for lesson in lessons if lesson.next_BS is not None]
    if said_MS.next_gradient_BS is not None and foreseen:
        loss = loss + error(said_MS.next_gradient_BS, torch.cat(foreseen))
    return loss
