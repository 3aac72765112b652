"""The language model: embedding → L single-layer LSTMs → softmax, with locked dropout in between.

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
    """The sizes from which the network can be rebuilt; written to a model's `config.json`."""

    vocab_size: int
    layers: int
    hidden: int
    embedding: int
    tied: bool
    cutoffs: tuple[int, ...] = ()
    """The numbers of words, by count, at which the tails of an adaptive softmax begin; empty for a
    full softmax."""

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of units of each layer. With tied weights the last must match the embedding
        (Press & Wolf 2017; the same shape as in Merity et al. 2018)."""
        last = self.embedding if self.tied else self.hidden
        return (*[self.hidden] * (self.layers - 1), last)

    @property
    def input_widths(self) -> tuple[int, ...]:
        """The number of inputs of each layer."""
        return (self.embedding, *self.widths[:-1])

    @property
    def layer_weights(self) -> list[int]:
        """The number of weights of each layer."""
        pairs = zip(self.input_widths, self.widths, strict=True)
        return [layer_weights(inputs, units) for inputs, units in pairs]

    @property
    def parameters(self) -> int:
        """The number of weights of the whole network."""
        softmax = self.vocab_size * (1 + (0 if self.tied else self.widths[-1]))
        softmax += len(self.cutoffs) * (1 + self.widths[-1])
        return self.vocab_size * self.embedding + sum(self.layer_weights) + softmax

    @property
    def state_size(self) -> int:
        """S, the number of coordinates of a lane's state: hidden and cell of every layer."""
        return 2 * sum(self.widths)


@dataclass(frozen=True, kw_only=True)
class DropoutRates:
    """The dropout probabilities: of the embedded input, of the outputs between layers, of the last
    layer's output, of whole words of the embedding, and of entries of the recurrent matrices."""

    input: float = 0.0
    between: float = 0.0
    output: float = 0.0
    embedding: float = 0.0
    weight: float = 0.0


class LSTMLanguageModel(nn.Module):
    """The network, with `features` and `nll` apart so that the loss can be computed in chunks."""

    def __init__(
        self,
        shape: ModelShape,
        dropout: DropoutRates | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the network with fresh weights drawn from torch's global generator.

        Args:
            shape: Sizes of the network.
            dropout: Dropout rates in training. None: no dropout.
            compute_dtype: Type of the matrix products. None: the parameters' own.
        """
        super().__init__()
        self.shape = shape
        self.dropout = dropout or DropoutRates()
        self.compute_dtype = compute_dtype
        self.ranks: Ranks = ALONE  # dropout masks are drawn for the lanes of all ranks
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

        Starting from zero, the biases of rare words would have to move by about −log V, for which
        an optimizer whose steps are bounded by the learning rate (Adam) takes thousands of steps.
        (Lin et al. 2017, on the focal loss, sec. 3.3, also initialize a classifier at the class
        frequencies.) An adaptive softmax orders the words by these counts.
        """
        smoothed_V = counts_V.to(self.softmax_bias) + 1
        bias_V = (smoothed_V / smoothed_V.sum()).log()
        if self.adaptive is not None:
            bias_V = self.adaptive.order_by_count(counts_V, bias_V)
        self.softmax_bias.copy_(bias_V)

    def rows_of(self, ids: Tensor) -> Tensor:
        """Returns the rows of embedding, softmax matrix and biases that belong to token ids."""
        return ids if self.adaptive is None else self.adaptive.rows_of(ids)

    def word_vectors(self, ids: Tensor) -> Tensor:
        """Returns embeddings `(…, E)` of token ids `(…)`, without dropout; detached."""
        return F.embedding(self.rows_of(ids), self.embedding.detach())

    @property
    def output_weight(self) -> Tensor:
        """The softmax matrix `(V, H)`: the embedding itself when tied (Inan et al. 2017)."""
        return self.embedding if self.softmax_weight is None else self.softmax_weight

    def start_state(self, batch: int) -> LSTMState:
        """Returns the zero state of `batch` lanes, on the parameters' device and in their type."""
        weight = self.embedding
        return LSTMState.zeros(batch, self.shape.widths, device=weight.device, dtype=weight.dtype)

    def features(self, inputs_TB: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Returns the softmax's input at every step, and the state after the window.

        Args:
            inputs_TB: Token ids, int64.
            state: State of B lanes before the window.

        Returns:
            `(features_TBH, state)`, differentiable with respect to `state` and the parameters.
        """
        embedded_TBE, _ = self.embed(inputs_TB)
        outputs_TBH, state = self.outputs(embedded_TBE, state)
        return self.drop_outputs(outputs_TBH), state

    def embed(self, inputs_TB: Tensor) -> tuple[Tensor, Tensor]:
        """Returns `(embedded_TBE, output_weight)`: word vectors after dropout; the softmax matrix.

        Use `output_weight` for `nll` only (see `tied_embedding`). If it is the embedding itself,
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
        """Returns features from the last layer's outputs, with output dropout in training."""
        return locked_dropout(
            outputs_TBH, self.dropout.output if self.training else 0.0, self.ranks
        )

    def drop_and_penalize(
        self, outputs_TBH: Tensor, activation: float, temporal: float
    ) -> tuple[Tensor, Tensor]:
        """Does the same as `drop_outputs`, and also computes the penalty of `sglm.kernels.dropout`.

        Args:
            outputs_TBH: The last layer's outputs, from `outputs`.
            activation, temporal: α and β. If both are zero, the penalty is a constant zero.

        Returns:
            `(features_TBH, penalty)`.
        """
        rate = self.dropout.output if self.training else 0.0
        mask_BH = locked_mask(outputs_TBH, rate, self.ranks)
        return self._regularized_dropout(
            outputs_TBH, mask_BH, activation=activation, temporal=temporal
        )

    def outputs(self, embedded_TBE: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Returns the last layer's outputs before dropout, and the state after the window.

        `embed`, `outputs` and `drop_outputs` together are `features`; they are separate for a loss
        that needs the outputs before dropout (`sglm.kernels.dropout`).

        Args:
            embedded_TBE: Word vectors, from `embed`.
            state: See `features`.
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
        """Returns the cluster of each target, 0 for the head; None if the softmax is full."""
        return None if self.adaptive is None else self.adaptive.clusters_of(targets)

    def target_rows(self, ids: Tensor) -> Tensor:
        """Returns W[y] `(…, H)`, along which the log-probability of a word grows; detached.

        With an adaptive softmax, the row of the word's tail in the head is added.

        Args:
            ids: Token ids `(…)`.
        """
        weight_VH = self.output_weight.detach()
        if self.adaptive is not None:
            return self.adaptive.target_rows(ids, weight_VH)
        return F.embedding(ids, weight_VH)

    def known_residual(self, targets: Tensor) -> Tensor:
        """Returns the part of ∂(nats)/∂features that needs no softmax: −W[y] `(…, H)`, detached.

        The other part is the row of W that the softmax expects (`sglm.dni.expected_row`).

        Args:
            targets: Token ids `(…)`; −100: nothing is predicted, and the gradient is zero.
        """
        rows = self.target_rows(targets.clamp_min(0))
        return -rows.where((targets != IGNORED)[..., None], 0.0)

    def stages(self, targets_N: Tensor, output_weight: Tensor | None = None) -> Iterator[Stage]:
        """Yields the softmaxes whose probabilities, multiplied, are those of the targets.

        Args:
            targets_N: Token ids; −100: nothing is predicted.
            output_weight: The softmax matrix from `embed`. None: the parameter.
        """
        weight_VH = self.output_weight if output_weight is None else output_weight
        if self.adaptive is None:
            yield Stage(None, weight_VH, self.softmax_bias, targets_N)
        else:
            yield from self.adaptive.stages(targets_N, weight_VH, self.softmax_bias)

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits `(…, V)` of features `(…, H)`, by token id, in the features' type; of
        an adaptive softmax the log-probabilities, float32 at least."""
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
        """Computes the negative log-likelihood of the targets in nats, float32 at least.

        A sum that is to be differentiated may be computed in chunks (`sglm.model.softmax_loss`) if
        there are too many logits to hold at once or if chunks are faster. Its gradients are then
        computed with it, and it can be differentiated only once.

        Args:
            features_TBH: The features, from `features`.
            targets_TB: Token ids, int64; −100: nothing is predicted.
            reduction: `"sum"` over the window, a scalar; `"none"` for each token, `(T, B)`.
            output_weight: The softmax matrix from `embed`. None: the parameter.
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
            nll_N = stage.scatter_add(nll_N, nll_M)
        return nll_N.view_as(targets_TB)


@contextmanager
def without_dropout(model: LSTMLanguageModel) -> Iterator[None]:
    """Disables dropout inside the context; afterwards the model is in its previous mode."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
