"""Mixtures: several predictors as one, by the weighted mean of their probabilities of each token.

This is linear interpolation of language models (Jelinek & Mercer 1980, "Interpolated estimation of
Markov source parameters from sparse data").

Shapes: T time, B lanes, V vocabulary, M rows, P predictors, N tokens.
"""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglm.errors import InputError
from sglm.scoring.predictor import IGNORED, Blocks, Predictor, identity_of

Nats = npt.NDArray[np.float64]
State = tuple[Any, ...]
TOLERANCE = 1e-6  # the search for weights ends when no weight changes by more


class Mixture:
    """A weighted mixture of predictors, itself a `Predictor`; with equal weights, an ensemble.

    Huang et al. 2017 (Snapshot Ensembles, section 3) average softmax outputs like this. By Jensen's
    inequality, a token's surprisal is at most the weighted mean of the predictors' surprisals.
    """

    def __init__(
        self, predictors: Sequence[Predictor[Any]], *, weights: Sequence[float] | None = None
    ) -> None:
        """
        Args:
            predictors: The predictors, of one vocabulary, whose distributions come in equal blocks.
                Log-probabilities are mixed on the device of the first.
            weights: The weight of each predictor, not negative, with a sum of 1. None: all equal.

        Raises:
            InputError: There are no predictors, or their vocabularies differ in size.
        """
        if not predictors:
            raise InputError("an ensemble needs at least one model")
        sizes = sorted({predictor.vocab_size for predictor in predictors})
        if len(sizes) > 1:
            raise InputError(
                f"models of {' and '.join(map(str, sizes))} tokens have no common vocabulary;"
                " give models of one run"
            )
        self._predictors = list(predictors)
        if weights is None:
            weights = [1 / len(predictors)] * len(predictors)
        self._log_weights = [math.log(w) if w > 0 else -math.inf for w in weights]

    @property
    def identity(self) -> str:
        return " + ".join(map(identity_of, self._predictors))

    @property
    def vocab_size(self) -> int:
        return self._predictors[0].vocab_size

    @property
    def device(self) -> torch.device:
        return self._predictors[0].device

    def start(self, lanes: int) -> State:
        return tuple(predictor.start(lanes) for predictor in self._predictors)

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: State
    ) -> tuple[Tensor | None, State]:
        parts = [
            predictor.read(ids_TB, targets_TB, each)
            for predictor, each in zip(self._predictors, state, strict=True)
        ]
        after = tuple(each for _, each in parts)
        if targets_TB is None:
            return None, after
        logprobs_TB = self._mixed([logprobs for logprobs, _ in parts if logprobs is not None])
        return logprobs_TB.masked_fill((targets_TB == IGNORED).to(self.device), 0.0), after

    def distributions(
        self, ids_TB: Tensor, state: State, *, last_steps: int | None = None
    ) -> tuple[Blocks, State]:
        parts = [
            predictor.distributions(ids_TB, each, last_steps=last_steps)
            for predictor, each in zip(self._predictors, state, strict=True)
        ]
        return self._blocks([blocks for blocks, _ in parts]), tuple(each for _, each in parts)

    def _blocks(self, parts: Sequence[Blocks]) -> Blocks:
        for blocks in zip(*parts, strict=True):
            (rows,) = {(rows.start, rows.stop) for rows, _ in blocks}
            yield slice(*rows), self._mixed([logprobs_MV for _, logprobs_MV in blocks])

    def select(self, state: State, lanes: Tensor) -> State:
        return tuple(
            predictor.select(each, lanes)
            for predictor, each in zip(self._predictors, state, strict=True)
        )

    def _mixed(self, logprobs: Sequence[Tensor]) -> Tensor:
        weighted = (
            each.to(self.device) + log_weight
            for each, log_weight in zip(logprobs, self._log_weights, strict=True)
        )
        return reduce(torch.logaddexp, weighted)


def fit_weights(logprobs_PN: Nats) -> Nats:
    """Finds the weights with which a mixture makes the tokens most probable, `(P,)`.

    The method is expectation maximisation from equal weights (Dempster, Laird & Rubin 1977). The
    likelihood is concave in the weights, so it finds a global maximum.

    Args:
        logprobs_PN: The log-probability of each token under each predictor.

    Raises:
        InputError: There are no tokens, or some token has probability 0 under every predictor.
    """
    if not logprobs_PN.size or not (logprobs_PN.max(axis=0) > -np.inf).all():
        raise InputError(
            "the weight cannot be tuned: there is no token to tune it on, or one that no model"
            " considers possible; give the weight as a number"
        )
    weights_P = np.full(len(logprobs_PN), 1 / len(logprobs_PN))
    relative_PN = np.exp(logprobs_PN - logprobs_PN.max(axis=0))
    while True:
        shares_PN = weights_P[:, None] * relative_PN
        new_P: Nats = (shares_PN / shares_PN.sum(axis=0)).mean(axis=1)
        if np.abs(new_P - weights_P).max() <= TOLERANCE:
            return new_P
        weights_P = new_P
