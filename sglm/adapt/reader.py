"""One lane read by a model that may change on the way, and the predictor made of such readers.

A reader predicts every token before it learns from it, and learns from the ids that it reads, never
from the targets that a caller asks about. Where it learns depends on how many tokens it has read
since the start, never on how a text is cut into calls.

Shapes: T time of one lane, B lanes, V vocabulary, H features, M some rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from sglm.model.identity import identity_of_network
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.runtime.process import settle_after_fork
from sglm.scoring.predictor import IGNORED, Blocks, block_logprobs, block_rows, evaluating

LaneState = TypeVar("LaneState")


class Part(Protocol):
    """Consecutive steps of a lane, read and not yet learned from."""

    def features(self) -> Tensor:
        """What the network knows at each step, `(T, H)`."""

    def blocks(self) -> Blocks:
        """The log-probabilities `(M, V)` of all tokens, some rows at a time."""

    def target_logprobs(self, targets_T: Tensor) -> Tensor:
        """Those of one token at each step, float64 `(T,)`."""


class LaneReader(Protocol[LaneState]):
    """Reads one lane. Runs within `evaluating`; its states are constants, as a predictor's."""

    def start(self) -> LaneState:
        """Before any text."""

    def parts(self, ids_T: Tensor, state: LaneState) -> Iterator[tuple[Part, LaneState]]:
        """Reads on; each part comes with the state after it, the last state is the result."""


@dataclass(frozen=True, kw_only=True)
class SoftmaxPart:
    """Steps predicted by a network's softmax, whose biases may be shifted."""

    network: LSTMLanguageModel
    features_TH: Tensor
    bias_V: Tensor | None = None
    """Added to the logits."""

    def features(self) -> Tensor:
        return self.features_TH

    def blocks(self) -> Blocks:
        for rows in block_rows(len(self.features_TH), self.network.shape.vocab_size):
            features_MH = self.features_TH[rows]
            yield rows, block_logprobs(self.network, features_MH, bias_V=self.bias_V)

    def target_logprobs(self, targets_T: Tensor) -> Tensor:
        return gathered(self.blocks(), targets_T)


def gathered(blocks: Blocks, targets_T: Tensor) -> Tensor:
    """The targets' columns of all rows, float64."""
    return torch.cat(
        [
            logprobs_MV.gather(1, targets_T[rows, None])[:, 0].double()
            for rows, logprobs_MV in blocks
        ]
    )


class StaticReader:
    """The network as it is: what adapting readers are compared with, and a cache is put on."""

    def __init__(self, network: LSTMLanguageModel) -> None:
        self.network = network

    def start(self) -> LSTMState:
        return self.network.start_state(1)

    def parts(self, ids_T: Tensor, state: LSTMState) -> Iterator[tuple[Part, LSTMState]]:
        features_T1H, state = self.network.features(ids_T[:, None], state)
        yield SoftmaxPart(network=self.network, features_TH=features_T1H[:, 0]), state


class AdaptingPredictor(Generic[LaneState]):
    """A reader as a predictor; its state is a tuple of the lanes' states.

    The lanes are read one after the other, because each has learned something else. Within one call
    of `distributions` all its rows are held in memory.
    """

    # The state of a lane is large, and several lanes are no faster than one after the other.
    most_lanes = 1

    def __init__(self, reader: LaneReader[LaneState], *, network: LSTMLanguageModel) -> None:
        """
        Args:
            reader: how a lane is read.
            network: the loaded one, which stays as it is.
        """
        self.reader = reader
        self.network = network

    @cached_property
    def identity(self) -> str:
        kinds: list[str] = []
        reader: LaneReader[Any] | None = self.reader
        while reader is not None:  # a cache lies on another reader
            kinds.append(type(reader).__name__)
            reader = getattr(reader, "beneath", None)
        return f"{' on '.join(kinds)} of {identity_of_network(self.network)}"

    @property
    def vocab_size(self) -> int:
        return self.network.shape.vocab_size

    @property
    def device(self) -> torch.device:
        return self.network.embedding.device

    def start(self, lanes: int) -> tuple[LaneState, ...]:
        settle_after_fork()
        with evaluating(self.network):
            return (self.reader.start(),) * lanes

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: tuple[LaneState, ...]
    ) -> tuple[Tensor | None, tuple[LaneState, ...]]:
        if targets_TB is None:
            return None, tuple(
                self._read_lane(ids_TB[:, lane], None, before)[1]
                for lane, before in enumerate(state)
            )
        lanes = [
            self._read_lane(ids_TB[:, lane], targets_TB[:, lane], before)
            for lane, before in enumerate(state)
        ]
        logprobs_TB = torch.stack([logprobs_T for logprobs_T, _ in lanes], dim=1)
        return logprobs_TB, tuple(after for _, after in lanes)

    def _read_lane(
        self, ids_T: Tensor, targets_T: Tensor | None, state: LaneState
    ) -> tuple[Tensor, LaneState]:
        with evaluating(self.network):
            logprobs = []
            ids_T = ids_T.to(self.device)
            first = 0
            for part, after in self.reader.parts(ids_T, state):
                state = after
                end = first + len(part.features())
                if targets_T is not None:
                    asked = targets_T[first:end].to(self.device)
                    logprobs_T = part.target_logprobs(asked.clamp_min(0))
                    logprobs.append(logprobs_T.where(asked != IGNORED, 0.0))
                first = end
            none = torch.empty(0, dtype=torch.float64, device=self.device)
            return torch.cat(logprobs) if logprobs else none, state

    def distributions(
        self,
        ids_TB: Tensor,
        state: tuple[LaneState, ...],
        *,
        last_steps: int | None = None,
    ) -> tuple[Blocks, tuple[LaneState, ...]]:
        kept = len(ids_TB) if last_steps is None else last_steps
        lanes, after = [], []
        with evaluating(self.network):
            for lane, lane_state in enumerate(state):
                parts_TV: list[Tensor] = []
                first = 0
                for part, following in self.reader.parts(
                    ids_TB[:, lane].to(self.device), lane_state
                ):
                    lane_state = following
                    first += len(part.features())
                    if first > len(ids_TB) - kept:
                        parts_TV += [logprobs_MV.clone() for _, logprobs_MV in part.blocks()]
                lanes.append(torch.cat(parts_TV)[-kept:])
                after.append(lane_state)
            rows_NV = torch.stack(lanes, dim=1).flatten(0, 1)
        return iter([(slice(0, len(rows_NV)), rows_NV)]), tuple(after)

    def select(self, state: tuple[LaneState, ...], lanes: Tensor) -> tuple[LaneState, ...]:
        return tuple(state[lane] for lane in lanes.tolist())
