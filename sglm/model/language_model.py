"""Embedding → L single-layer LSTMs → softmax, with locked dropout in between.

Shapes: T time, B lanes, V vocabulary, E embedding, H_l units of layer l, H units of the last one.
Losses are in nats. Parameters are held in float32; products run in `compute_dtype` with explicit
casts around each LSTM, because autocast picks a type of its own for cuDNN's LSTMs.
"""

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.kernels.choice import chosen
from sglm.kernels.dropout import regularized_dropout
from sglm.model.adaptive_softmax import AdaptiveSoftmax
from sglm.model.dropout import locked_dropout, locked_mask, word_dropout
from sglm.model.embedding import tied_embedding
from sglm.model.linear import linear
from sglm.model.lstm_layer import LSTMLayer, layer_weights
from sglm.model.softmax_loss import IGNORED, Stage, stage_nll
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What must be known to build the network again: written to a model's `config.json`."""

    vocab_size: int
    layers: int
    hidden: int
    embedding: int
    tied: bool
    cutoffs: tuple[int, ...] = ()
    """Of an adaptive softmax: the words, by count, at which another tail begins; none: full."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each layer. With tied weights the last one must match the embedding
        (Press & Wolf 2017; the same shape as Merity et al. 2018)."""
        last = self.embedding if self.tied else self.hidden
        return (*[self.hidden] * (self.layers - 1), last)

    @property
    def input_widths(self) -> tuple[int, ...]:
        """The number of inputs of each layer."""
        return (self.embedding, *self.widths[:-1])

    @property
    def layer_weights(self) -> list[int]:
        """How many weights each layer has."""
        pairs = zip(self.input_widths, self.widths, strict=True)
        return [layer_weights(inputs, units) for inputs, units in pairs]

    @property
    def parameters(self) -> int:
        """How many weights the whole network has."""
        softmax = self.vocab_size * (1 + (0 if self.tied else self.widths[-1]))
        softmax += len(self.cutoffs) * (1 + self.widths[-1])
        return self.vocab_size * self.embedding + sum(self.layer_weights) + softmax

    @property
    def state_size(self) -> int:
        """S, the coordinates of a lane's state: hidden and cell of every layer."""
        return 2 * sum(self.widths)


@dataclass(frozen=True, kw_only=True)
class DropoutRates:
    """Dropout probabilities: of the embedded input, of the outputs between layers, of the last
    layer's output, of whole words of the embedding, of entries of the recurrent matrices."""

    input: float = 0.0
    between: float = 0.0
    output: float = 0.0
    embedding: float = 0.0
    weight: float = 0.0


class LSTMLanguageModel(nn.Module):
    """The network. `features` and `nll` are separate so that the loss can be computed in chunks."""

    def __init__(
        self,
        shape: ModelShape,
        dropout: DropoutRates | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the network with fresh weights drawn from torch's global generator.

        Args:
            shape: sizes.
            dropout: rates while training; none by default.
            compute_dtype: type of the matrix products; None is the parameters' own.
        """
        super().__init__()
        self.shape = shape
        self.dropout = dropout or DropoutRates()
        self.compute_dtype = compute_dtype
        self.ranks: Ranks = ALONE  # dropout masks are drawn for the lanes of all these
        self.embedding = nn.Parameter(torch.empty(shape.vocab_size, shape.embedding))
        nn.init.uniform_(self.embedding, -0.1, 0.1)  # Merity et al. 2018, sec. 5
        self.layers = nn.ModuleList(
            LSTMLayer(inputs, units, weight_drop_rate=self.dropout.weight)
            for inputs, units in zip(shape.input_widths, shape.widths, strict=True)
        )
        if shape.tied:
            self.softmax_weight = None
        else:
            self.softmax_weight = nn.Parameter(torch.empty(shape.vocab_size, shape.widths[-1]))
            nn.init.uniform_(self.softmax_weight, -0.1, 0.1)
        self.softmax_bias = nn.Parameter(torch.zeros(shape.vocab_size))
        self.adaptive = None
        if shape.cutoffs:
            self.adaptive = AdaptiveSoftmax(shape.vocab_size, shape.cutoffs, shape.widths[-1])
        self._regularized_dropout = chosen(regularized_dropout)

    @torch.no_grad()
    def start_from_unigram(self, counts_V: Tensor) -> None:
        """Sets the softmax biases to the unigram log-probabilities, with add-one smoothing.

        From zero, the biases of rare words would have to move by about −log V, for which an
        optimizer whose steps are bounded by the learning rate (Adam) takes thousands of steps.
        Initializing a classifier at the class frequencies: Lin et al. 2017 (focal loss), sec. 3.3.
        An adaptive softmax orders the words by these counts.
        """
        smoothed_V = counts_V.to(self.softmax_bias) + 1
        bias_V = (smoothed_V / smoothed_V.sum()).log()
        if self.adaptive is not None:
            bias_V = self.adaptive.order_by_count(counts_V, bias_V)
        self.softmax_bias.copy_(bias_V)

    def rows_of(self, ids: Tensor) -> Tensor:
        """Which rows of embedding, softmax matrix and biases belong to token ids."""
        return ids if self.adaptive is None else self.adaptive.rows_of(ids)

    def word_vectors(self, ids: Tensor) -> Tensor:
        """Embeddings `(…, E)` of token ids `(…)`, without dropout; constants."""
        return F.embedding(self.rows_of(ids), self.embedding.detach())

    @property
    def output_weight(self) -> Tensor:
        """The softmax matrix `(V, H)`: the embedding itself when tied (Inan et al. 2017)."""
        return self.embedding if self.softmax_weight is None else self.softmax_weight

    def start_state(self, batch: int) -> LSTMState:
        """Zeros for `batch` lanes, where and as the parameters are."""
        weight = self.embedding
        return LSTMState.zeros(batch, self.shape.widths, device=weight.device, dtype=weight.dtype)

    def features(self, inputs_TB: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """The softmax's input at every step, and the state after the window.

        Args:
            inputs_TB: token ids, int64.
            state: B lanes.

        Returns:
            `(features_TBH, state)`; both differentiable in `state` and the parameters.
        """
        embedded_TBE, _ = self.embed(inputs_TB)
        outputs_TBH, state = self.outputs(embedded_TBE, state)
        return self.drop_outputs(outputs_TBH), state

    def embed(self, inputs_TB: Tensor) -> tuple[Tensor, Tensor]:
        """`(embedded_TBE, output_weight)`: vectors of the words after dropout; the softmax matrix.

        Use `output_weight` for `nll` only (see `tied_embedding`). Where it is the embedding itself,
        the gradients of the two uses are then added more cheaply than autograd would.
        """
        rates = self.dropout if self.training else DropoutRates()
        weight_VE, output_weight = self.embedding, self.output_weight
        rows_TB = self.rows_of(inputs_TB)
        if self.shape.tied and not weight_VE.is_cuda and torch.is_grad_enabled():
            embedded_TBE, output_weight = tied_embedding(rows_TB, weight_VE)
        else:
            embedded_TBE = F.embedding(rows_TB, weight_VE)
        embedded_TBE = word_dropout(
            embedded_TBE, inputs_TB, words=len(weight_VE), rate=rates.embedding
        )
        return locked_dropout(embedded_TBE, rates.input, self.ranks), output_weight

    def drop_outputs(self, outputs_TBH: Tensor) -> Tensor:
        """From the last layer's outputs to features: output dropout, while training."""
        return locked_dropout(
            outputs_TBH, self.dropout.output if self.training else 0.0, self.ranks
        )

    def drop_and_penalize(
        self, outputs_TBH: Tensor, activation: float, temporal: float
    ) -> tuple[Tensor, Tensor]:
        """As `drop_outputs`, together with the penalties of `sglm.kernels.dropout`.

        Args:
            outputs_TBH: from `outputs`.
            activation, temporal: α and β; without either the penalty is a constant zero.

        Returns:
            `(features_TBH, penalty)`.
        """
        rate = self.dropout.output if self.training else 0.0
        mask_BH = locked_mask(outputs_TBH, rate, self.ranks)
        return self._regularized_dropout(
            outputs_TBH, mask_BH, activation=activation, temporal=temporal
        )

    def outputs(self, embedded_TBE: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """The last layer's outputs before dropout, and the state after the window.

        `embed`, `outputs` and `drop_outputs` together are `features`; they are separate for a loss
        that needs the outputs before dropout (`sglm.kernels.dropout`).

        Args:
            embedded_TBE: from `embed`.
            state: see `features`.
        """
        rates = self.dropout if self.training else DropoutRates()
        compute_dtype = self.compute_dtype or self.embedding.dtype
        outputs_TBH, hidden, cell = embedded_TBE, [], []
        for index, layer in enumerate(self.layers):
            if index > 0:
                outputs_TBH = locked_dropout(outputs_TBH, rates.between, self.ranks)
            outputs_TBH, hidden_BH, cell_BH = layer(
                outputs_TBH,
                state.hidden[index],
                state.cell[index],
                weight_drop_rate=rates.weight,
                compute_dtype=compute_dtype,
            )
            hidden.append(hidden_BH)
            cell.append(cell_BH)
        return outputs_TBH, LSTMState(tuple(hidden), tuple(cell))

    def clusters_of(self, targets: Tensor) -> Tensor | None:
        """Of an adaptive softmax: the cluster of each target, 0 for the head; None: it is full."""
        return None if self.adaptive is None else self.adaptive.clusters_of(targets)

    def target_rows(self, ids: Tensor) -> Tensor:
        """W[y] `(…, H)`, along which the log-probability of a word grows; constants.

        With an adaptive softmax, that of its tail in the head is added.

        Args:
            ids: token ids `(…)`.
        """
        weight_VH = self.output_weight.detach()
        if self.adaptive is not None:
            return self.adaptive.target_rows(ids, weight_VH)
        return F.embedding(ids, weight_VH)

    def known_residual(self, targets: Tensor) -> Tensor:
        """The part of ∂(nats)/∂features that needs no softmax: −W[y] `(…, H)`, a constant.

        The other part is the mean row of W under the softmax (`sglm.dni.expected_row`).

        Args:
            targets: token ids `(…)`; −100: nothing is predicted, and the gradient is zero.
        """
        rows = self.target_rows(targets.clamp_min(0))
        return -rows.where((targets != IGNORED)[..., None], 0.0)

    def stages(self, targets_N: Tensor, output_weight: Tensor | None = None) -> Iterator[Stage]:
        """The softmaxes whose probabilities, multiplied, are those of the targets.

        Args:
            targets_N: token ids; −100: nothing to predict.
            output_weight: from `embed`, or None.
        """
        weight_VH = self.output_weight if output_weight is None else output_weight
        if self.adaptive is None:
            yield Stage(None, weight_VH, self.softmax_bias, targets_N)
        else:
            yield from self.adaptive.stages(targets_N, weight_VH, self.softmax_bias)

    def logits(self, features: Tensor) -> Tensor:
        """Log-probabilities `(…, V)` of features `(…, H)`, by token id; of a full softmax
        unnormalised, and in the compute type."""
        weight_VH, bias_V = (
            each.to(features.dtype) for each in (self.output_weight, self.softmax_bias)
        )
        if self.adaptive is not None:
            return self.adaptive.logprobs(features, weight_VH, bias_V)
        return linear(features, weight_VH, bias_V)

    def nll(
        self,
        features_TBH: Tensor,
        targets_TB: Tensor,
        *,
        reduction: str = "sum",
        output_weight: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of the targets in nats, float32 at least.

        A sum that is to be differentiated may be computed in chunks (`sglm.model.softmax_loss`),
        where there are too many logits to hold at once or where chunks are faster. Its gradients
        are then computed with it, and it can be differentiated only once.

        Args:
            features_TBH: from `features`.
            targets_TB: token ids, int64; −100: nothing to predict.
            reduction: `"sum"` over the window, a scalar; `"none"` for each token, `(T, B)`.
            output_weight: from `embed`, or None.
        """
        features_NH, targets_N = features_TBH.flatten(0, 1), targets_TB.flatten()
        parts = [
            (stage, stage_nll(features_NH, stage, reduction))
            for stage in self.stages(targets_N, output_weight)
        ]
        if reduction == "sum":
            return reduce(operator.add, (nll for _, nll in parts))
        nll_N = torch.zeros_like(parts[0][1])
        for stage, nll_M in parts:
            nll_N = stage.added(nll_N, nll_M)
        return nll_N.view_as(targets_TB)


@contextmanager
def without_dropout(model: LSTMLanguageModel) -> Iterator[None]:
    """No masks are drawn inside; afterwards the model is in the mode that it was in."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
