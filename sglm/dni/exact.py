"""State gradients as they really are, by backpropagation through text that is still to come.

Shapes: B lanes, S coordinates of a state, C steps of coming text, P boundaries T steps apart.
"""

import torch
from torch import Tensor

from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.text.batcher import Upcoming


def future_gradients(
    model: LSTMLanguageModel, state: LSTMState, upcoming: Upcoming, window: int, boundaries: int
) -> tuple[Tensor, Tensor]:
    """The exact state gradients of all the coming text that is there, at successive boundaries.

    Args:
        model, state: as the stretch begins.
        upcoming: the text.
        window: T, the distance of the boundaries.
        boundaries: P, how many; the first one is at `state`.

    Returns:
        The packed states and their gradients, `(P, B, S)` each, detached.
    """
    cuts = [window] * (boundaries - 1)
    rest = len(upcoming.inputs_CB) - sum(cuts)
    states, features = [state.as_leaf()], []
    # The masks of dropout are drawn aside, so that teaching does not change the training's own.
    devices = [model.embedding.device] if model.embedding.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        for inputs_TB in torch.split(upcoming.inputs_CB, [*cuts, rest]):
            features_TBH, outgoing = model.features(inputs_TB, states[-1])
            features.append(features_TBH)
            states.append(outgoing)
    nll_nats = model.nll(torch.cat(features), upcoming.targets_CB)
    states.pop()
    parts = [part for each in states for part in (*each.hidden, *each.cell)]
    gradients = torch.autograd.grad(nll_nats, parts)
    per_state = len(parts) // len(states)
    return (
        torch.stack([each.detach().packed() for each in states]),
        torch.stack(
            [
                torch.cat(gradients[first : first + per_state], dim=1)
                for first in range(0, len(parts), per_state)
            ]
        ),
    )
