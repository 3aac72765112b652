"""Dynamic evaluation: gradient descent on the text that was just read.

Source: Krause, Kahembwe, Murray & Renals 2018, "Dynamic evaluation of neural sequence models",
section 5: after each segment of a few tokens, all weights take a step down the gradient of its loss
and a step back towards the trained weights.

Shapes: T time, V vocabulary. Losses are means over a segment's tokens, in nats.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sglm.adapt.reader import Part, SoftmaxPart
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule for every weight's step: w ← w − learning_rate·g/scale + pull·(w_trained − w).

    For SGD, scale is 1 and pull is the decay; for the RMS rule, see `sglm.adapt.gradients`.
    """

    learning_rate: float
    scale: Sequence[Tensor]
    """One tensor for each of the network's parameters, in order."""
    pull: Sequence[Tensor]
    """Likewise: the share, at most 1, of the way back to the trained weight that a step covers."""


class DynamicState(NamedTuple):
    """The state of a lane: its own network, and the segment that it has not yet learned from."""

    network: LSTMLanguageModel
    lstm: LSTMState
    before: LSTMState
    """The state before the segment."""
    ids_T: Tensor
    """The part of the segment that has been read."""


class DynamicReader:
    """A reader that learns from each segment once it has the next token, its last label."""

    def __init__(self, network: LSTMLanguageModel, *, segment: int, rule: Rule) -> None:
        self.network = network
        self.segment = segment
        self.rule = rule

    def start(self) -> DynamicState:
        state = self.network.start_state(1)
        return DynamicState(
            self.network, state, state, torch.empty(0, dtype=torch.int64, device="cpu")
        )

    def parts(self, ids_T: Tensor, state: DynamicState) -> Iterator[tuple[Part, DynamicState]]:
        first = 0
        while first < len(ids_T):
            if len(state.ids_T) == self.segment:
                state = self._learned(state, ids_T[first : first + 1])
            end = min(len(ids_T), first + self.segment - len(state.ids_T))
            features_T1H, lstm = state.network.features(ids_T[first:end, None], state.lstm)
            read_T = torch.cat((state.ids_T.to(ids_T), ids_T[first:end]))
            state = state._replace(lstm=lstm, ids_T=read_T)
            yield SoftmaxPart(network=state.network, features_TH=features_T1H[:, 0]), state
            first = end

    def _learned(self, state: DynamicState, next_1: Tensor) -> DynamicState:
        targets_T = torch.cat((state.ids_T[1:], next_1))
        gradients = loss_gradients(
            state.network, state.ids_T[:, None], targets_T[:, None], state=state.before
        )
        # Weights created in inference mode could not be part of the next segment's graph.
        with torch.inference_mode(False), torch.no_grad():
            weights = [
                torch.lerp(weight, trained, pull).addcdiv_(
                    gradient, scale, value=-self.rule.learning_rate
                )
                for weight, gradient, scale, pull, trained in zip(
                    state.network.parameters(),
                    gradients,
                    self.rule.scale,
                    self.rule.pull,
                    self.network.parameters(),
                    strict=True,
                )
            ]
            network = with_weights(state.network, weights)
        return DynamicState(network, state.lstm, state.lstm, state.ids_T[:0])


def loss_gradients(
    network: LSTMLanguageModel, ids_TB: Tensor, targets_TB: Tensor, *, state: LSTMState
) -> tuple[Tensor, ...]:
    """Returns the mean loss's gradients in the network's parameters; the state is a constant."""
    # Tensors created in inference mode cannot be part of a graph; copies can.
    with torch.inference_mode(False), torch.enable_grad():
        state = LSTMState(*(tuple(part.clone() for part in parts) for parts in state))
        embedded_TBE, output_weight = network.embed(ids_TB.clone())
        outputs_TBH, _ = network.outputs(embedded_TBE, state)
        loss = network.nll(outputs_TBH, targets_TB.clone(), output_weight=output_weight)
        return torch.autograd.grad(loss / ids_TB.numel(), list(network.parameters()))


def with_weights(network: LSTMLanguageModel, weights: Sequence[Tensor]) -> LSTMLanguageModel:
    """Returns the same network with other weights, which are not copied."""
    pairs = zip(network.parameters(), weights, strict=True)
    # deepcopy does not copy the tensors in its memo.
    memo: dict[int, Tensor] = {id(buffer): buffer for buffer in network.buffers()}
    memo |= {id(old): nn.Parameter(new) for old, new in pairs}
    return copy.deepcopy(network, memo)
