"""Synthetic gradient descent at test time: a small network proposes the steps.

After Hu et al. 2020, "Empirical Bayes transductive meta-learning with synthetic gradients", eq. 10:
the parameters that adapt start from a learned initialisation and take K steps down gradients that a
network proposes. No loss is differentiated at test time. In the paper the network reads the
predictions for the queries of a task; here it reads what the model predicted for the text so far,
and which words came.

Few parameters adapt: the output biases, and scale and shift of the last layer's features. Every
segment starts from the initialisation again: what is known of the text so far is contained in its
evidence, averages over the past that decay at several rates.

Shapes: B lanes, T time, V vocabulary, H features, R rates of decay.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sglm.adapt.reader import Part, SoftmaxPart, gathered
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.scoring.predictor import Blocks

# A word counts as read until its count, which decays at the slowest rate, falls below this.
_FORGOTTEN = 0.05
# Added to averages of probabilities before their logarithm is taken.
_SMALL = 1e-6


@dataclass(frozen=True, kw_only=True)
class GradientsShape:
    """The sizes and settings from which the network is built."""

    vocab_size: int
    features: int
    """H of the model that adapts."""
    steps: int = 2
    """K, the number of steps down proposed gradients."""
    segment: int = 64
    """Tokens from one proposal to the next, over which its cost is spread."""
    horizons: tuple[float, ...] = (100.0, 600.0, 4000.0)
    """Numbers of tokens after which what was read counts e times less; the longest last."""
    hidden: int = 16


class Proposal(NamedTuple):
    """The parameters that adapt, a set for each lane."""

    bias_BV: Tensor
    scale_BH: Tensor
    """The features are multiplied by 1 + this."""
    shift_BH: Tensor

    def adapted(self, features_TBH: Tensor) -> Tensor:
        """Returns the features, scaled and shifted."""
        return features_TBH * (1 + self.scale_BH) + self.shift_BH


class Evidence(NamedTuple):
    """Sums over past tokens, in which older tokens count less, for each rate of decay.

    `weight_R` is the same sum of ones, by which the others are divided.
    """

    observed_BRV: Tensor
    """The number of times that each word was read."""
    expected_BRV: Tensor
    """The probabilities of each word with the trained biases."""
    features_BRH: Tensor
    weight_R: Tensor
    horizons_R: Tensor

    @classmethod
    def none(cls, horizons: Tensor, lanes: int, *, shape: GradientsShape) -> "Evidence":
        """Returns the evidence before any text."""
        words = horizons.new_zeros(lanes, len(horizons), shape.vocab_size)
        features = horizons.new_zeros(lanes, len(horizons), shape.features)
        return cls(words, words, features, torch.zeros_like(horizons), horizons)

    def after(
        self, words_TB: Tensor, expected_BV: Tensor, features_TBH: Tensor, *, bias_BV: Tensor
    ) -> "Evidence":
        """Returns the evidence after one more segment.

        Args:
            words_TB: Words that came.
            expected_BV: Sum over the segment of the predicted probabilities.
            features_TBH: Features of the trained network.
            bias_BV: Biases of these predictions; their effect is removed.
        """
        steps = len(words_TB)
        kept_R = torch.exp(-steps / self.horizons_R)
        trained_BV = expected_BV * torch.exp(-bias_BV)
        trained_BV = trained_BV * (steps / trained_BV.sum(1, keepdim=True))
        observed_BV = torch.zeros_like(expected_BV)
        observed_BV.scatter_add_(1, words_TB.T, torch.ones_like(words_TB.T, dtype=bias_BV.dtype))
        return Evidence(
            self.observed_BRV * kept_R[:, None] + observed_BV[:, None],
            self.expected_BRV * kept_R[:, None] + trained_BV[:, None],
            self.features_BRH * kept_R[:, None] + features_TBH.sum(0)[:, None],
            self.weight_R * kept_R + steps,
            self.horizons_R,
        )


class SyntheticGradients(nn.Module):
    """The initialisation, and the two networks that propose gradients: for a word's bias from the
    evidence on that word, for a feature's scale and shift from the evidence on that feature.

    Words that were not read recently keep the bias of the initialisation.
    """

    def __init__(self, shape: GradientsShape) -> None:
        super().__init__()
        rates = len(shape.horizons)
        self.shape = shape
        self.bias_V = nn.Parameter(torch.zeros(shape.vocab_size))
        self.scale_H = nn.Parameter(torch.zeros(shape.features))
        self.shift_H = nn.Parameter(torch.zeros(shape.features))
        self.of_words = _small_network(3 * rates + 1, shape.hidden, 1)
        self.of_features = _small_network(2 * rates + 2, shape.hidden, 2)

    def initialisation(self) -> list[nn.Parameter]:
        """Returns the parameters from which the steps start."""
        return [self.bias_V, self.scale_H, self.shift_H]

    def network_parameters(self) -> list[nn.Parameter]:
        """Returns the weights of the networks that propose gradients."""
        return [*self.of_words.parameters(), *self.of_features.parameters()]

    def with_steps(self, steps: int) -> "SyntheticGradients":
        """Returns the same networks with another K; with K = 0 only the initialisation is used."""
        other = copy.copy(self)
        other.shape = replace(self.shape, steps=steps)
        return other

    def no_evidence(self, lanes: int) -> Evidence:
        """Returns the evidence before any text."""
        horizons_R = self.bias_V.new_tensor(self.shape.horizons)
        return Evidence.none(horizons_R, lanes, shape=self.shape)

    def forward(self, evidence: Evidence, target_rows: Callable[[Tensor], Tensor]) -> Proposal:
        """Takes K steps down the proposed gradients, from the initialisation.

        Args:
            evidence: Evidence from the text so far.
            target_rows: Function of the model from token ids to rows `(…, H)` of its softmax
                matrix, which are constants.
        """
        lanes = len(evidence.observed_BRV)
        start_BV, scale_BH, shift_BH = (
            start.expand(lanes, -1) for start in (self.bias_V, self.scale_H, self.shift_H)
        )
        if not self.shape.steps or not bool(evidence.weight_R[0] > 0):
            return Proposal(start_BV, scale_BH, shift_BH)
        known = _Known.of(evidence, start_BV, target_rows)
        bias_BS = start_BV[:, known.words_S]
        for _ in range(self.shape.steps):
            word_inputs = torch.cat((known.word_inputs(bias_BS), bias_BS[:, None]), 1)
            feature_inputs = torch.cat(
                (known.features_BRH, known.errors_BRH, scale_BH[:, None], shift_BH[:, None]), 1
            )
            bias_BS = bias_BS - known.read_BS * self.of_words(word_inputs.mT)[..., 0]
            gradient_BH2 = self.of_features(feature_inputs.mT)
            scale_BH = scale_BH - gradient_BH2[..., 0]
            shift_BH = shift_BH - gradient_BH2[..., 1]
        bias_BV = start_BV.index_copy(1, known.words_S, bias_BS)
        return Proposal(bias_BV, scale_BH, shift_BH)


class _Known(NamedTuple):
    """The inputs of the networks, as numbers of order one. S: words read recently by some lane."""

    words_S: Tensor
    read_BS: Tensor
    """1 for each of these words that the lane itself has read, otherwise 0."""
    observed_BRS: Tensor
    expected_BRS: Tensor
    others_BR1: Tensor
    """The total probability of all other words, with the biases of the initialisation."""
    features_BRH: Tensor
    errors_BRH: Tensor
    """The gradient of the loss on the text so far in the features, at the initialisation; only from
    these words, because all rows of the softmax matrix would take as long as everything else."""

    @classmethod
    def of(
        cls, evidence: Evidence, bias_BV: Tensor, target_rows: Callable[[Tensor], Tensor]
    ) -> "_Known":
        slowest_BV = evidence.observed_BRV[:, -1]
        words_S = (slowest_BV > _FORGOTTEN).any(0).nonzero()[:, 0]
        weight_R1 = evidence.weight_R[:, None]
        observed_BRS = evidence.observed_BRV[:, :, words_S] / weight_R1
        expected_BRS = evidence.expected_BRV[:, :, words_S] / weight_R1
        tilt_BV = torch.exp(bias_BV)
        tilted_BRS = expected_BRS * tilt_BV[:, None, words_S]
        total_BR1 = (evidence.expected_BRV @ tilt_BV[:, :, None]) / weight_R1
        return cls(
            words_S,
            (slowest_BV[:, words_S] > _FORGOTTEN).to(slowest_BV),
            observed_BRS,
            expected_BRS,
            total_BR1 - tilted_BRS.sum(2, keepdim=True),
            evidence.features_BRH / weight_R1,
            (tilted_BRS / total_BR1 - observed_BRS) @ target_rows(words_S),
        )

    def word_inputs(self, bias_BS: Tensor) -> Tensor:
        """Returns observed and predicted frequencies, and the error of the frequencies that these
        biases would have predicted: the true gradient in them. `(B, 3R, S)`."""
        tilted_BRS = self.expected_BRS * torch.exp(bias_BS)[:, None]
        total_BR1 = self.others_BR1 + tilted_BRS.sum(2, keepdim=True)
        error_BRS = 1e4 * (tilted_BRS / total_BR1 - self.observed_BRS)
        return torch.cat(
            (
                torch.log10(self.observed_BRS + _SMALL) + 4,
                torch.log10(self.expected_BRS + _SMALL) + 4,
                error_BRS.sign() * torch.log1p(error_BRS.abs()),
            ),
            1,
        )


def _small_network(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    # Zero-initialised so that training starts without adaptation.
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), last)


class SyntheticState(NamedTuple):
    """The state of a lane: its evidence, the proposal made from it, and the segment read since."""

    lstm: LSTMState
    evidence: Evidence
    proposal: Proposal
    expected_1V: Tensor
    """The sum of the probabilities predicted in this segment."""
    features_T1H: Tensor
    ids_T: Tensor


@dataclass(frozen=True, kw_only=True)
class ReadPart:
    """Steps whose predictions are held in memory, at most a segment of them."""

    features_TH: Tensor
    logprobs_TV: Tensor

    def features(self) -> Tensor:
        return self.features_TH

    def blocks(self) -> Blocks:
        yield slice(0, len(self.logprobs_TV)), self.logprobs_TV

    def target_logprobs(self, targets_T: Tensor) -> Tensor:
        return gathered(self.blocks(), targets_T)


class SyntheticReader:
    """A reader that predicts each segment with the parameters proposed from the text before it."""

    def __init__(self, network: LSTMLanguageModel, *, gradients: SyntheticGradients) -> None:
        self.network = network
        self.gradients = gradients
        self.segment = gradients.shape.segment

    def start(self) -> SyntheticState:
        evidence = self.gradients.no_evidence(1)
        return SyntheticState(
            self.network.start_state(1),
            evidence,
            self.gradients(evidence, self.network.target_rows),
            torch.zeros_like(evidence.observed_BRV[:, 0]),
            evidence.features_BRH.new_empty(0, 1, evidence.features_BRH.shape[2]),
            torch.empty(0, dtype=torch.int64, device="cpu"),
        )

    def parts(self, ids_T: Tensor, state: SyntheticState) -> Iterator[tuple[Part, SyntheticState]]:
        # The LSTM does not adapt, so it reads all steps at once.
        features_T1H, lstm = self.network.features(ids_T[:, None], state.lstm)
        state = state._replace(lstm=lstm)
        if not self.gradients.shape.steps:  # the proposal never changes
            yield self._predicted(features_T1H, state.proposal), state
            return
        first = 0
        while first < len(ids_T):
            if len(state.ids_T) == self.segment:
                state = self.learned(state, ids_T[first : first + 1])
            end = min(len(ids_T), first + self.segment - len(state.ids_T))
            predicted = self._predicted(features_T1H[first:end], state.proposal)
            blocks = [logprobs_MV for _, logprobs_MV in predicted.blocks()]
            logprobs_TV = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
            state = state._replace(
                expected_1V=state.expected_1V + logprobs_TV.exp().sum(0),
                features_T1H=torch.cat((state.features_T1H, features_T1H[first:end])),
                ids_T=torch.cat((state.ids_T.to(ids_T), ids_T[first:end])),
            )
            yield ReadPart(features_TH=features_T1H[first:end, 0], logprobs_TV=logprobs_TV), state
            first = end

    def _predicted(self, features_T1H: Tensor, proposal: Proposal) -> SoftmaxPart:
        return SoftmaxPart(
            network=self.network,
            features_TH=proposal.adapted(features_T1H)[:, 0],
            bias_V=proposal.bias_BV[0],
        )

    def learned(self, state: SyntheticState, next_1: Tensor) -> SyntheticState:
        """Returns the state after a whole segment is learned; its last label is the next token."""
        evidence = state.evidence.after(
            torch.cat((state.ids_T[1:], next_1))[:, None],
            state.expected_1V,
            state.features_T1H,
            bias_BV=state.proposal.bias_BV,
        )
        return state._replace(
            evidence=evidence,
            proposal=self.gradients(evidence, self.network.target_rows),
            expected_1V=torch.zeros_like(state.expected_1V),
            features_T1H=state.features_T1H[:0],
            ids_T=state.ids_T[:0],
        )
