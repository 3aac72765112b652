"""Several models as one: the mean of their probabilities.

Shapes: T time, B lanes, V vocabulary, M some of the rows, K members. Log-probabilities are nats.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sglm.errors import InputError
from sglm.scoring.predictor import Blocks, Predictor


class Ensemble:
    """p(w) = mean over members of p_k(w): a `Predictor` whose state is its members' states.

    Huang et al. 2017 (Snapshot Ensembles, section 3) average softmax outputs like this. By Jensen's
    inequality no token costs more than the mean of the members' nats for it.
    """

    def __init__(self, members: Sequence[Predictor[Any]]) -> None:
        """
        Args:
            members: of the same vocabulary; their log-probabilities are averaged on the device of
                the first.

        Raises:
            InputError: there are none, or their vocabularies differ in size.
        """
        if not members:
            raise InputError("an ensemble needs at least one model")
        sizes = sorted({member.vocab_size for member in members})
        if len(sizes) > 1:
            raise InputError(
                f"models of {' and '.join(map(str, sizes))} tokens have no common vocabulary;"
                " give models of one run"
            )
        self.members = tuple(members)

    @property
    def vocab_size(self) -> int:
        return self.members[0].vocab_size

    @property
    def device(self) -> torch.device:
        return self.members[0].device

    def start(self, lanes: int) -> tuple[Any, ...]:
        return tuple(member.start(lanes) for member in self.members)

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: tuple[Any, ...]
    ) -> tuple[Tensor | None, tuple[Any, ...]]:
        logprobs, states = [], []
        for member, before in zip(self.members, state, strict=True):
            logprobs_TB, after = member.read(ids_TB, targets_TB, before)
            states.append(after)
            if logprobs_TB is not None:
                logprobs.append(logprobs_TB.to(self.device))
        if targets_TB is None:
            return None, tuple(states)
        return log_mean_exp(torch.stack(logprobs)), tuple(states)

    def distributions(
        self, ids_TB: Tensor, state: tuple[Any, ...], *, last_steps: int | None = None
    ) -> tuple[Blocks, tuple[Any, ...]]:
        pairs = [
            member.distributions(ids_TB, before, last_steps=last_steps)
            for member, before in zip(self.members, state, strict=True)
        ]
        return self._mixed([blocks for blocks, _ in pairs]), tuple(after for _, after in pairs)

    def _mixed(self, members: Sequence[Blocks]) -> Blocks:
        for parts in zip(*members, strict=True):
            rows = parts[0][0]
            assert all(part[0] == rows for part in parts), "members cut their rows differently"
            yield rows, log_mean_exp(torch.stack([part[1].to(self.device) for part in parts]))

    def select(self, state: tuple[Any, ...], lanes: Tensor) -> tuple[Any, ...]:
        return tuple(
            member.select(own, lanes) for member, own in zip(self.members, state, strict=True)
        )


def log_mean_exp(logprobs_K: Tensor) -> Tensor:
    """The logarithm of the mean probability over the first dimension."""
    return torch.logsumexp(logprobs_K, dim=0) - math.log(len(logprobs_K))
