"""One forward and one backward pass through the model's LSTM, from given output gradients.

Shapes: C steps of coming text, T of a window, B lanes, H features, S coordinates of a lane's state,
P boundaries.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sglm.model.language_model import LSTMLanguageModel, without_dropout
from sglm.model.state import LSTMState
from sglm.text.batcher import ComingText

# `(outputs_CBH, targets_CB) -> (C, B, H)`: ∂(nats)/∂(each output), true or predicted.
Residual = Callable[[Tensor, Tensor], Tensor]
# `(embedded_TBE, state) -> (outputs_TBH, state)`, as `LSTMLanguageModel.outputs`.
RunsLayers = Callable[[Tensor, LSTMState], tuple[Tensor, LSTMState]]


class WayBack(Protocol):
    """How the residuals of coming steps become state gradients: `adjoint_gradients`, or what
    stands in for it."""

    def __call__(
        self,
        model: LSTMLanguageModel,
        state: LSTMState,
        coming: ComingText,
        *,
        window: int,
        boundaries: int,
        residual: Residual,
    ) -> Tensor:
        """See `adjoint_gradients`."""
        ...


def adjoint_gradients(
    model: LSTMLanguageModel,
    state: LSTMState,
    coming: ComingText,
    *,
    window: int,
    boundaries: int,
    residual: Residual,
    layers: RunsLayers | None = None,
) -> Tensor:
    """State gradients at successive boundaries, by one pass through the LSTM and one back.

    Args:
        model: its current weights are used; without dropout.
        state: at the first boundary.
        coming: the text from there on; all of it is read.
        window: T, the distance of the boundaries.
        boundaries: P; the text must reach beyond the last one.
        residual: see `Residual`; from the true one the exact gradients of the nats follow.
        layers: what runs forwards and is gone back through; None: the model's own LSTM.

    Returns:
        `(P, B, S)`, packed, in nats; constants.
    """
    cuts = [window] * (boundaries - 1)
    cuts.append(len(coming.inputs_CB) - sum(cuts))
    states, outputs = [state.as_leaf()], []
    with torch.enable_grad(), without_dropout(model):
        embedded_CBE = model.word_vectors(coming.inputs_CB)
        for piece_TBE in torch.split(embedded_CBE, cuts):
            piece_TBH, outgoing = (layers or model.outputs)(piece_TBE, states[-1])
            outputs.append(piece_TBH)
            states.append(outgoing)
    residual_CBH = residual(torch.cat(outputs).detach(), coming.targets_CB)
    parts = [part for each in states[:-1] for part in (*each.hidden, *each.cell)]
    sent_back = torch.split(residual_CBH.to(outputs[0].dtype), cuts)
    gradients = torch.autograd.grad(outputs, parts, sent_back)
    return torch.stack(
        [
            torch.cat(gradients[first : first + len(parts) // boundaries], dim=1)
            for first in range(0, len(parts), len(parts) // boundaries)
        ]
    )
