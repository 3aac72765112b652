"""State gradients by one forward and one backward pass through the LSTM, from output gradients.

Shapes: C steps of coming text, T steps of a window, B lanes, H features, S coordinates of a lane's
state, P boundaries.
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
# `(embedded_TBE, state) -> (outputs_TBH, state)`, like `LSTMLanguageModel.outputs`.
RunsLayers = Callable[[Tensor, LSTMState], tuple[Tensor, LSTMState]]


class WayBack(Protocol):
    """A function from the residuals of coming steps to state gradients: `adjoint_gradients`, or a
    substitute for it."""

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
    """Computes state gradients at successive boundaries by one pass through the LSTM and back.

    Args:
        model: The language model, used with its current weights and without dropout.
        state: The state at the first boundary.
        coming: The text from that boundary on; all of it is read.
        window: T, the distance between boundaries.
        boundaries: P, the number of boundaries. The text must extend beyond the last one.
        residual: See `Residual`. The true residual gives the exact gradients of the nats.
        layers: Layers to run and to backpropagate through. None: the model's own LSTM.

    Returns:
        Packed state gradients in nats, `(P, B, S)`, detached.
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
