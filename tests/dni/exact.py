"""Exact state gradients, by backpropagation through text that is still to come.

Shapes: B lanes, S coordinates of a state, C steps of coming text, P boundaries T steps apart.
"""

from typing import Any

import torch
from torch import Tensor

from sglm.dni.estimator import PlainTruncation, StretchBeginning
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks


def future_gradients(beginning: StretchBeginning, boundaries: int) -> tuple[Tensor, Tensor]:
    """The exact state gradients of all the coming text that is there, at successive boundaries.

    Args:
        beginning: of the stretch: model, state, text and the distance of its boundaries.
        boundaries: P, how many; the first one is at the stretch's first state.

    Returns:
        The packed states and their gradients, `(P, B, S)` each, detached.
    """
    model, state, coming, window = beginning
    cuts = [window] * (boundaries - 1)
    rest = len(coming.inputs_CB) - sum(cuts)
    states, features = [state.as_leaf()], []
    # The generator is restored afterwards: training draws the same dropout masks as without this.
    devices = [model.embedding.device] if model.embedding.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        for inputs_TB in torch.split(coming.inputs_CB, [*cuts, rest]):
            features_TBH, outgoing = model.features(inputs_TB, states[-1])
            features.append(features_TBH)
            states.append(outgoing)
    nll_nats = model.nll(torch.cat(features), coming.targets_CB)
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


class ExactEstimator(PlainTruncation):
    """Injects the exact gradients of the coming text, as they were when a stretch began: an oracle.

    It costs a forward and a backward pass over that text at every stretch, and ages within it,
    because the model's weights move. For experiments: what an estimator can reach at most.

    Args:
        stretch: windows from one computation to the next; the batcher must show the text of as many
            windows and some that follow.
        factor: multiplies what is injected.
        ranks: the processes that share the lanes.
    """

    def __init__(self, *, stretch: int, factor: float = 1.0, ranks: Ranks = ALONE) -> None:
        self.stretch = stretch
        self.factor = factor
        self.ranks = ranks
        self.gradients_PBS: Tensor | None = None
        self.index = 0

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """Computes the gradients at all boundaries of the stretch, its end included."""
        # A boundary beyond which there is no text has none; nothing is injected there.
        with_text = -(-len(beginning.coming.inputs_CB) // beginning.window)
        boundaries = min(self.stretch + 1, with_text)
        _, self.gradients_PBS = future_gradients(beginning, boundaries)
        self.index = 0

    def enter_window(self, incoming: LSTMState) -> None:
        """Moves on to the window's end."""
        self.index += 1

    def estimate(self, outgoing: LSTMState) -> Tensor:
        """The exact gradient there, times the factor."""
        assert self.gradients_PBS is not None, "no stretch has begun: the batcher must look ahead"
        # Saved ones come back on the CPU.
        return self.factor * self.gradients_PBS[self.index].to(outgoing.cell[0].device)

    def state_dict(self) -> dict[str, Any]:
        """Where it is in its stretch, of all ranks' lanes; to be called by all of them."""
        own_PBS = self.gradients_PBS
        every = None if own_PBS is None else self.ranks.gather(own_PBS, dim=1)
        return {"gradients": every, "index": self.index}

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        every, self.index = tree["gradients"], tree["index"]
        self.gradients_PBS = None if every is None else self.ranks.own(every, dim=1)
