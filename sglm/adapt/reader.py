"""Readers, which read one lane and may change on the way, and the predictor made of a reader.

A reader predicts every token before it learns from it, and learns from the ids that it reads, never
from the targets that a caller asks about. The points at which it learns depend on the number of
tokens read since the start, never on how a text is divided into calls.

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
from sglm.runtime.process import limit_threads_after_fork
from sglm.scoring.predictor import IGNORED, Blocks, block_logprobs, block_rows, evaluating

LaneState = TypeVar("LaneState")


class Part(Protocol):
    """Consecutive steps of a lane that were read, but not yet learned from."""

    def features(self) -> Tensor:
        """Returns the network's features at each step, `(T, H)`."""

    def blocks(self) -> Blocks:
        """Yields the log-probabilities `(M, V)` of all tokens, some rows at a time."""

    def target_logprobs(self, targets_T: Tensor) -> Tensor:
        """Returns the log-probability of one token at each step, float64 `(T,)`."""


class LaneReader(Protocol[LaneState]):
    """A reader of one lane. It is called within `evaluating`, and like a predictor never changes a
    state, but returns a new one."""

    def start(self) -> LaneState:
        """Returns the state before any text."""

    def parts(self, ids_T: Tensor, state: LaneState) -> Iterator[tuple[Part, LaneState]]:
        """Reads on, and yields each part with the state after it; the last state is the result."""


@dataclass(frozen=True, kw_only=True)
class SoftmaxPart:
    """Steps predicted by a network's softmax, whose biases may be shifted."""

    network: LSTMLanguageModel
    features_TH: Tensor
    bias_V: Tensor | None = None
    """Biases that are added to the logits."""

    def features(self) -> Tensor:
        return self.features_TH

    def blocks(self) -> Blocks:
        for rows in block_rows(len(self.features_TH), self.network.shape.vocab_size):
            features_MH = self.features_TH[rows]
            yield rows, block_logprobs(self.network, features_MH, bias_V=self.bias_V)

    def target_logprobs(self, targets_T: Tensor) -> Tensor:
        return gathered(self.blocks(), targets_T)


def gathered(blocks: Blocks, targets_T: Tensor) -> Tensor:
    """Returns the target's entry of every row, float64."""
    return torch.cat(
        [
            logprobs_MV.gather(1, targets_T[rows, None])[:, 0].double()
            for rows, logprobs_MV in blocks
        ]
    )


class StaticReader:
    """A reader that does not adapt: the baseline of those that do, and a basis for a cache."""

    def __init__(self, network: LSTMLanguageModel) -> None:
        self.network = network

    def start(self) -> LSTMState:
        return self.network.start_state(1)

    def parts(self, ids_T: Tensor, state: LSTMState) -> Iterator[tuple[Part, LSTMState]]:
        features_T1H, state = self.network.features(ids_T[:, None], state)
        yield SoftmaxPart(network=self.network, features_TH=features_T1H[:, 0]), state


class AdaptingPredictor(Generic[LaneState]):
    """A predictor made of a reader; its state is a tuple of the lanes' states.

    The lanes are read one after the other, because each has learned something different. One call
    of `distributions` holds all its rows in memory.
    """

    # The state of a lane is large, and reading several lanes saves no time.
    max_lanes = 1

    def __init__(self, reader: LaneReader[LaneState], *, network: LSTMLanguageModel) -> None:
        """
        Args:
            reader: Reader of each lane.
            network: The loaded network; it is not changed.
        """
        self.reader = reader
        self.network = network

    @cached_property
    def identity(self) -> str:
        kinds: list[str] = []
        reader: LaneReader[Any] | None = self.reader
        while reader is not None:  # a cache has another reader beneath it
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
        limit_threads_after_fork()
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
                    targets_of_part_T = targets_T[first:end].to(self.device)
                    logprobs_T = part.target_logprobs(targets_of_part_T.clamp_min(0))
                    logprobs.append(logprobs_T.where(targets_of_part_T != IGNORED, 0.0))
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
