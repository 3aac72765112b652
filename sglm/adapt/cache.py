"""The continuous cache: the words that followed similar features in the text so far.

Source: Grave, Joulin & Usunier 2017, "Improving neural language models with a continuous cache",
section 3.

Shapes: T time, H features, V vocabulary, M queries at a time, N entries of the cache.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglm.adapt.reader import LaneReader, Part
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.runtime.memory_basis import FLOAT_BYTES
from sglm.scoring.predictor import Blocks

# Largest number of similarities (entries of the cache times queries) in memory at a time (16 MB).
SIMILARITIES = 2**22


class CacheState(NamedTuple):
    """Features of the last steps and the words that followed them; the last word is yet to come."""

    beneath: Any
    """The state of the reader beneath the cache."""
    features_NH: Tensor
    words_N: Tensor
    """The words; one fewer than the features, or none if there are no features."""


class CacheReader:
    """A reader that mixes the predictions of a reader with those of a cache of its features.

    p(w) = (1 − weight)·p_model(w) + weight·p_cache(w), where p_cache(w) is proportional to the sum
    of exp(sharpness·⟨h_t, h_i⟩) over those of the last `size` steps i that were followed by w. As
    long as the cache is empty, p(w) = p_model(w).
    """

    def __init__(
        self,
        beneath: LaneReader[Any],
        *,
        features: int,
        size: int,
        weight: float,
        sharpness: float,
    ) -> None:
        """
        Args:
            beneath: The reader beneath the cache.
            features: H, the number of features that it has at each step.
            size: The number of steps that the cache holds.
            weight: The weight of the cache's predictions, from 0 to 1.
            sharpness: The factor of the similarities.
        """
        self.beneath = beneath
        self.features = features
        self.size = size
        self.weight = weight
        self.sharpness = sharpness

    def start(self) -> CacheState:
        features_NH = torch.empty(0, self.features, dtype=torch.float32, device="cpu")
        words_N = torch.empty(0, dtype=torch.int64, device="cpu")
        return CacheState(self.beneath.start(), features_NH, words_N)

    def parts(self, ids_T: Tensor, state: CacheState) -> Iterator[tuple[Part, CacheState]]:
        first = 0
        for part, beneath in self.beneath.parts(ids_T, state.beneath):
            queries_TH = part.features().float()
            read_T = ids_T[first : first + len(queries_TH)]
            first += len(queries_TH)
            before = len(state.features_NH)
            if before:
                keys_NH = torch.cat((state.features_NH, queries_TH))
                # The first id of this part is the word after the last feature before it.
                words_N = torch.cat((state.words_N, read_T))
            else:
                keys_NH, words_N = queries_TH, read_T[1:]
            kept = min(self.size, len(keys_NH))
            state = CacheState(beneath, keys_NH[-kept:], words_N[len(words_N) + 1 - kept :])
            yield (
                CachePart(
                    beneath=part, keys_NH=keys_NH, words_N=words_N, before=before, cache=self
                ),
                state,
            )


@dataclass(frozen=True, kw_only=True)
class CachePart:
    """Consecutive steps predicted by the reader beneath and by the cache."""

    beneath: Part
    keys_NH: Tensor
    """The features before this part, then those of the part itself, which are also the queries."""
    words_N: Tensor
    """The word that followed each key except the last one, whose word is not known yet."""
    before: int
    """The number of keys before this part."""
    cache: CacheReader

    def features(self) -> Tensor:
        return self.beneath.features()

    def target_logprobs(self, targets_T: Tensor) -> Tensor:
        cached = [
            (weights_MN * (self.words_N == targets_T[rows, None])).sum(1)
            for rows, weights_MN in self._weights()
        ]
        return self._mixed(
            self.beneath.target_logprobs(targets_T), torch.cat(cached).double(), slice(None)
        )

    def blocks(self) -> Blocks:
        for rows, logprobs_MV in self.beneath.blocks():
            cached_MV = torch.zeros_like(logprobs_MV)
            for some, weights_MN in self._weights(rows):
                words_MN = self.words_N.expand(len(weights_MN), -1)
                cached_MV[some.start - rows.start : some.stop - rows.start].scatter_add_(
                    1, words_MN, weights_MN
                )
            yield rows, self._mixed(logprobs_MV, cached_MV, rows)

    def _mixed(self, logprobs: Tensor, cached: Tensor, rows: slice) -> Tensor:
        """Returns the logarithm of the mixture, for rows `(M,)` or `(M, V)`."""
        weight_T = logprobs.new_full((len(self.features()),), self.cache.weight)
        if not self.before:
            weight_T[0] = 0.0  # the cache is empty
        weight = weight_T[rows].view(-1, *[1] * (logprobs.dim() - 1))
        return torch.logaddexp(torch.log1p(-weight) + logprobs, (weight * cached).log())

    def _weights(self, rows: slice | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Yields the weights of all cached words at some of the steps, `(M, N)`.

        A row sums to 1, or to 0 if its step sees no cached word.
        """
        first, end = (0, len(self.features())) if rows is None else (rows.start, rows.stop)
        count = max(1, SIMILARITIES // max(1, len(self.words_N)))
        queries_TH = self.keys_NH[self.before :]
        places_N = torch.arange(len(self.words_N), device=self.keys_NH.device)
        for start in range(first, end, count):
            some = slice(start, min(start + count, end))
            # A step sees the `size` steps before it; the words that followed them are known.
            place_M1 = self.before + torch.arange(some.start, some.stop, device=places_N.device)
            age_MN = place_M1[:, None] - places_N
            scores_MN = queries_TH[some] @ self.keys_NH[: len(self.words_N)].T
            seen_MN = (age_MN >= 1) & (age_MN <= self.cache.size)
            scores_MN = (self.cache.sharpness * scores_MN).masked_fill(~seen_MN, -torch.inf)
            yield some, torch.softmax(scores_MN, dim=1).nan_to_num(0.0)


def refuse_if_too_large(size: int, network: LSTMLanguageModel) -> None:
    """Refuses a cache with too many entries for this machine.

    Raises:
        InputError: The cache does not fit into half of the machine's memory.
    """
    needed = cache_bytes(size, network)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there / 2:
        per_entry = cache_bytes(1, network)
        raise InputError(
            f"a cache of {size:,} tokens takes {needed / 2**30:,.1f} GiB, more than half of this"
            f" machine's {there / 2**30:,.1f} GiB; lower size to {int(there / 2 / per_entry):,} or"
            " less"
        )


def cache_bytes(size: int, network: LSTMLanguageModel) -> int:
    """Returns the memory of a cache: its entries twice, because they are copied as it grows."""
    return 2 * size * (network.shape.widths[-1] * FLOAT_BYTES + 8)
