"""Embedding → L single-layer LSTMs → softmax, with locked dropout in between.

Shapes: T time, B lanes, V vocabulary, E embedding, H_l units of layer l, H units of the last one.
Losses are in nats. Parameters are held in float32; products run in `compute_dtype` with explicit
casts around each LSTM, because autocast picks a type of its own for cuDNN's LSTMs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.kernels.choice import chosen
from sglm.kernels.dropout import regularized_dropout
from sglm.kernels.lstm import LSTMWeights, lstm_layer
from sglm.model.dropout import locked_dropout, locked_mask, weight_dropout, word_dropout
from sglm.model.embedding import tied_embedding
from sglm.model.linear import linear
from sglm.model.packed_weights import packed_weights
from sglm.model.softmax_loss import chunk_rows, chunked_nll, faster_chunked
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks

# oneDNN keeps a block of memory per call for the backward pass, sixteen times as large as the
# outputs. Of long windows whose length varies, as it does while a horizon fills, no block fits
# where the one before it lay; of segments of equal length they do.
SEGMENT_STEPS = 70


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What must be known to build the network again: written to a model's `config.json`."""

    vocab_size: int
    layers: int
    hidden: int
    embedding: int
    tied: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Units of each layer. With tied weights the last one must match the embedding
        (Press & Wolf 2017; the same shape as Merity et al. 2018)."""
        last = self.embedding if self.tied else self.hidden
        return (*[self.hidden] * (self.layers - 1), last)

    @property
    def state_size(self) -> int:
        """S, the coordinates of a lane's state: hidden and cell of every layer."""
        return 2 * sum(self.widths)


@dataclass(frozen=True, kw_only=True)
class DropoutRates:
    """Probabilities of dropping: what comes in, what passes between layers, what goes out,
    whole words of the embedding, entries of the recurrent matrices."""

    input: float = 0.0
    between: float = 0.0
    output: float = 0.0
    embedding: float = 0.0
    weight: float = 0.0


class LSTMLayer(nn.Module):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000).

    Gates are stacked in torch's order: input, forget, cell, output.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * units, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        self.bias = nn.Parameter(torch.zeros(4 * units))
        for gate_ih, gate_hh in zip(
            self.weight_ih.data.chunk(4), self.weight_hh.data.chunk(4), strict=True
        ):
            nn.init.xavier_uniform_(gate_ih)  # Glorot & Bengio 2010, eq. 16
            nn.init.orthogonal_(gate_hh)  # Saxe et al. 2014: norms survive many steps
        # Remember at first: forget gates start open (Jozefowicz et al. 2015).
        self.bias.data[units : 2 * units] = 1.0
        self._lstm_layer = chosen(lstm_layer)

    def forward(
        self,
        inputs_TBI: Tensor,
        hidden_BH: Tensor,
        cell_BH: Tensor,
        *,
        weight_drop_rate: float,
        compute_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Runs the layer over the window.

        Args:
            inputs_TBI: in any floating type; cast to `compute_dtype`.
            hidden_BH, cell_BH: the state before the window.
            weight_drop_rate: see `weight_dropout`.
            compute_dtype: the type of the products.

        Returns:
            `(outputs_TBH in compute_dtype, hidden_BH, cell_BH)`, the state in the type it came in.
        """
        weight_hh = weight_dropout(self.weight_hh, weight_drop_rate)
        if weight_hh.is_cuda:
            weights = packed_weights(self.weight_ih, weight_hh, self.bias, dtype=compute_dtype)
        else:
            bias = self.bias.to(compute_dtype)
            # torch wants two biases; the second adds nothing, so it is a constant zero.
            weights = LSTMWeights(
                self.weight_ih.to(compute_dtype),
                weight_hh.to(compute_dtype),
                bias,
                torch.zeros_like(bias),
            )
        # cuDNN can differentiate only what ran in training mode, also when ours is evaluation.
        training = self.training or torch.is_grad_enabled()
        state_dtype = hidden_BH.dtype
        hidden_BH, cell_BH = hidden_BH.to(compute_dtype), cell_BH.to(compute_dtype)
        outputs = []
        for segment_TBI in _segments(inputs_TBI.to(compute_dtype)):
            segment_TBH, hidden_BH, cell_BH = self._lstm_layer(
                segment_TBI, hidden_BH, cell_BH, weights=weights, training=training
            )
            outputs.append(segment_TBH)
        outputs_TBH = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return outputs_TBH, hidden_BH.to(state_dtype), cell_BH.to(state_dtype)


def _segments(inputs_TBI: Tensor) -> tuple[Tensor, ...]:
    """The steps that one call of torch's LSTM gets: all of them, or some, where it keeps much."""
    if inputs_TBI.is_cuda or not torch.is_grad_enabled():
        return (inputs_TBI,)
    return torch.split(inputs_TBI, SEGMENT_STEPS)


class LSTMLanguageModel(nn.Module):
    """The network. `features` and `nll` are apart, so that the loss can be computed in chunks."""

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
        self.ranks: Ranks = ALONE  # whose masks to draw beside one's own
        self.embedding = nn.Parameter(torch.empty(shape.vocab_size, shape.embedding))
        nn.init.uniform_(self.embedding, -0.1, 0.1)  # Merity et al. 2018, sec. 5
        inputs = (shape.embedding, *shape.widths[:-1])
        self.layers = nn.ModuleList(
            LSTMLayer(size, units) for size, units in zip(inputs, shape.widths, strict=True)
        )
        if shape.tied:
            self.softmax_weight = None
        else:
            self.softmax_weight = nn.Parameter(torch.empty(shape.vocab_size, shape.widths[-1]))
            nn.init.uniform_(self.softmax_weight, -0.1, 0.1)
        self.softmax_bias = nn.Parameter(torch.zeros(shape.vocab_size))
        self._regularized_dropout = chosen(regularized_dropout)

    @torch.no_grad()
    def start_from_unigram(self, counts_V: Tensor) -> None:
        """Lets the softmax begin at the training text's word frequencies, with add-one smoothing.

        Biases of rare words have far to go, about −log V, and an optimizer whose steps are bounded
        by the learning rate (Adam) takes thousands of steps for it. Starting classifiers at the
        class frequencies: Lin et al. 2017 (focal loss), sec. 3.3.
        """
        smoothed_V = counts_V.to(self.softmax_bias) + 1
        self.softmax_bias.copy_((smoothed_V / smoothed_V.sum()).log())

    @property
    def output_weight(self) -> Tensor:
        """The softmax matrix `(V, H)`: the embedding itself when tied (Inan et al. 2017)."""
        return self.embedding if self.softmax_weight is None else self.softmax_weight

    def start_state(self, batch: int) -> LSTMState:
        """Zeros for `batch` lanes, where and as the parameters are."""
        weight = self.embedding
        return LSTMState.zeros(batch, self.shape.widths, device=weight.device, dtype=weight.dtype)

    def features(self, inputs_TB: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """What the softmax sees at every step, and the state after the window.

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

        The latter is for `nll` and nothing else (see `tied_embedding`): where it is the embedding
        itself, the gradients of both uses are put together more cheaply than by two uses.
        """
        rates = self.dropout if self.training else DropoutRates()
        weight_VE, output_weight = self.embedding, self.output_weight
        if self.shape.tied and not weight_VE.is_cuda and torch.is_grad_enabled():
            embedded_TBE, output_weight = tied_embedding(inputs_TB, weight_VE)
        else:
            embedded_TBE = F.embedding(inputs_TB, weight_VE)
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

        `features` in three parts, `embed`, this and `drop_outputs`, for a loss that looks at what
        lies between them (`sglm.kernels.dropout`).

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

    def token_features(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What the network knows of a step's tokens by themselves: `(…, E + H)`, detached.

        Args:
            inputs, targets: token ids `(…)`; a target of −100 (nothing to predict) gives zeros.

        Returns:
            The input's embedding and the target's row of the softmax matrix, side by side.
        """
        predicted = (targets >= 0).unsqueeze(-1)
        embedded = F.embedding(inputs, self.embedding.detach())
        row = F.embedding(targets.clamp_min(0), self.output_weight.detach())
        return torch.cat((embedded, row * predicted), dim=-1)

    def logits(self, features: Tensor, output_weight: Tensor | None = None) -> Tensor:
        """Unnormalised log-probabilities `(…, V)` of features `(…, H)`, in the compute type.

        `output_weight` is from `embed`, or None.
        """
        weight_VH = self.output_weight if output_weight is None else output_weight
        return linear(features, weight_VH.to(features.dtype), self.softmax_bias.to(features.dtype))

    def nll(
        self,
        features_TBH: Tensor,
        targets_TB: Tensor,
        *,
        reduction: str = "sum",
        output_weight: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood of the targets in nats, float32 at least.

        A sum that is to be differentiated never holds more than a chunk of logits where they are
        many, and comes with its gradients where that is faster (`sglm.model.softmax_loss`); it can
        then be differentiated once only.

        Args:
            features_TBH: from `features`.
            targets_TB: token ids, int64; −100: nothing to predict.
            reduction: `"sum"` over the window, a scalar; `"none"` for each token, `(T, B)`.
            output_weight: from `embed`, or None.
        """
        weight_VH = self.output_weight if output_weight is None else output_weight
        features_NH, targets_N = features_TBH.flatten(0, 1), targets_TB.flatten()
        rows = chunk_rows(self.shape.vocab_size, features_NH.device.type)
        chunked = len(targets_N) > rows or faster_chunked(features_NH, weight_VH)
        if chunked and reduction == "sum" and torch.is_grad_enabled():
            return chunked_nll(
                features_NH, weight_VH, self.softmax_bias, targets_N=targets_N, rows=rows
            )
        logits_NV = self.logits(features_NH, weight_VH)
        # Sums of exponentials over thousands of words need float32 (the logits may be half).
        if logits_NV.dtype in (torch.float16, torch.bfloat16):
            logits_NV = logits_NV.float()
        nll = F.cross_entropy(logits_NV, targets_N, reduction=reduction)
        return nll.view_as(targets_TB) if reduction == "none" else nll
