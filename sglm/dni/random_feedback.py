"""Fixed random matrices that carry the coming residuals back to a state, in place of the weights.

Two relatives of synthetic gradients in the common language of Czarnecki et al. (2017): *feedback
alignment* goes back through the LSTM step by step, with a random matrix wherever backpropagation
would multiply by a transposed weight matrix (Lillicrap et al. 2016); *direct feedback alignment*
maps each residual to the state at once (Nøkland 2016). The matrices are drawn once and never
change; the question is whether the model's weights come to agree with them.

Shapes: C steps of coming text, T steps of a window, B lanes, E embedding, I inputs, H units of a
layer, R features before the softmax, S coordinates of a lane's state, P boundaries.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.dni.adjoint_pass import Residual
from sglm.model.language_model import LSTMLanguageModel, ModelShape, without_dropout
from sglm.model.lstm_layer import LSTMLayer, recurrent_gain
from sglm.model.state import LSTMState
from sglm.runtime.memory_basis import MemoryBasis
from sglm.text.batcher import ComingText

# Floats per step, lane and unit of an LSTM that runs step by step in torch's elementary operations:
# those kept for the backward pass (gates, cell, its tanh, output), and those held during it, for
# one layer at a time (the gates' gradients). Fitted to the memory use that torch reports
# (tests/train/dry_run/test_memory.py).
_STEPWISE_KEEPS, _STEPWISE_BACKWARD = 6.5, 4.0


class FeedbackMatrices(NamedTuple):
    """The feedback matrices of one layer, shaped like the weights that they replace.

    Attributes:
        input_4HI: Replacement of the layer's input weights; None for the first layer, whose inputs
            need no gradient.
        hidden_4HH: Replacement of its recurrent weights.
    """

    input_4HI: Tensor | None
    hidden_4HH: Tensor


def draw_feedback(
    shape: ModelShape, seed: int, *, weight_drop_rate: float = 0.0
) -> list[FeedbackMatrices]:
    """Draws feedback matrices from the initial distributions of the model's weights (`LSTMLayer`).

    A residual that is sent back then stays as long as in the model at the start of training:
    recurrent matrices are orthogonal, gate by gate, so that it neither grows nor fades over many
    steps. With weight dropout they are smaller, like the model's.

    Args:
        shape: Shape of the model.
        seed: Seed that determines all matrices, on any device.
        weight_drop_rate: Rate of weight dropout in the model's training.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices, gain = [], recurrent_gain(weight_drop_rate)
    for index, (inputs, units) in enumerate(zip(shape.input_widths, shape.widths, strict=True)):
        hidden_4HH = torch.empty(4 * units, units)
        for gate_HH in hidden_4HH.chunk(4):
            nn.init.orthogonal_(gate_HH, gain, generator=generator)
        input_4HI = None
        if index > 0:
            input_4HI = torch.empty(4 * units, inputs)
            for gate_HI in input_4HI.chunk(4):
                nn.init.xavier_uniform_(gate_HI, generator=generator)
        matrices.append(FeedbackMatrices(input_4HI, hidden_4HH))
    return matrices


class FeedbackLayers:
    """The model's LSTM stack, with feedback matrices instead of its weights in the backward pass.

    Everything that is not a product with a matrix (gates, cells) is differentiated exactly. It
    serves as `layers` of `adjoint_gradients`.

    Args:
        model: The language model, used with its current weights and without dropout.
        matrices: The feedback matrices of each layer.
    """

    def __init__(self, model: LSTMLanguageModel, *, matrices: Sequence[FeedbackMatrices]) -> None:
        self.model = model
        self.matrices = [
            FeedbackMatrices(
                None if back.input_4HI is None else back.input_4HI.to(model.embedding),
                back.hidden_4HH.to(model.embedding),
            )
            for back in matrices
        ]

    def __call__(self, embedded_CBE: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        """Runs the layers, like `LSTMLanguageModel.outputs`."""
        dtype = self.model.compute_dtype or self.model.embedding.dtype
        outputs_CBH = embedded_CBE.to(dtype)
        hidden, cell = list[Tensor](), list[Tensor]()
        for layer, back, hidden_BH, cell_BH in zip(
            self.model.layers, self.matrices, *state, strict=True
        ):
            assert isinstance(layer, LSTMLayer)
            outputs_CBH, last_BH, last_cell_BH = _run_layer(
                outputs_CBH, hidden_BH.to(dtype), cell_BH.to(dtype), layer=layer, back=back
            )
            hidden.append(last_BH.to(hidden_BH.dtype))
            cell.append(last_cell_BH.to(cell_BH.dtype))
        return outputs_CBH, LSTMState(tuple(hidden), tuple(cell))


def _run_layer(
    inputs_CBI: Tensor,
    hidden_BH: Tensor,
    cell_BH: Tensor,
    *,
    layer: LSTMLayer,
    back: FeedbackMatrices,
) -> tuple[Tensor, Tensor, Tensor]:
    input_4HI, hidden_4HH, bias_4H = (
        each.detach().to(inputs_CBI.dtype)
        for each in (layer.weight_ih, layer.weight_hh, layer.bias)
    )
    if back.input_4HI is None:
        from_inputs_CBG = F.linear(inputs_CBI, input_4HI, bias_4H)
    else:
        from_inputs_CBG = _feedback_product(inputs_CBI, input_4HI, back.input_4HI) + bias_4H
    outputs = []
    for from_inputs_BG in from_inputs_CBG:
        gates_BG = from_inputs_BG + _feedback_product(hidden_BH, hidden_4HH, back.hidden_4HH)
        input_BH, forget_BH, candidate_BH, output_BH = gates_BG.chunk(4, dim=1)
        cell_BH = forget_BH.sigmoid() * cell_BH + input_BH.sigmoid() * candidate_BH.tanh()
        hidden_BH = output_BH.sigmoid() * cell_BH.tanh()
        outputs.append(hidden_BH)
    # Separate nodes of the graph: the gradient at the state after the last step must not include
    # the gradient at that step's output.
    return torch.stack(outputs), hidden_BH.view_as(hidden_BH), cell_BH.view_as(cell_BH)


def _feedback_product(inputs: Tensor, weight: Tensor, back: Tensor) -> Tensor:
    """Returns inputs·weightᵀ; in its derivative with respect to the inputs, `back` replaces the
    weight."""
    product: Tensor = _FeedbackProduct.apply(inputs, weight, back.to(weight.dtype))  # type: ignore[no-untyped-call]
    return product


class _FeedbackProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return inputs @ weight.t()

    @staticmethod
    def backward(ctx: Any, to_product: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return to_product @ back, None, None


def draw_direct(shape: ModelShape, seed: int, *, reach: int) -> Tensor:
    """Draws the one matrix of direct feedback, `(S, R)`.

    It is scaled such that the sum of `reach` unrelated residuals arrives as long as one of them: a
    true gradient fades with distance, and is about that long.

    The matrix is the same for all distances. The derivative of a later feature with respect to the
    state is a power of one step's derivative, so no weights could come to agree with independent
    matrices for every distance. Weights that preserve what they remember can agree with one.

    Args:
        shape: Shape of the model.
        seed: Seed that determines the matrix, on any device.
        reach: Number of residuals that are added up.
    """
    generator = torch.Generator().manual_seed(seed)
    entries_SR = torch.randn(shape.state_size, shape.widths[-1], generator=generator)
    entries_SR /= math.sqrt(shape.state_size * reach)
    return entries_SR


class DirectFeedback:
    """A substitute for `adjoint_gradients`: the sum of the next residuals, through one matrix.

    Args:
        matrix_SR: Matrix from residuals to state gradients.
        reach: Number of residuals after each boundary that are added up.
    """

    def __init__(self, matrix_SR: Tensor, *, reach: int) -> None:
        self.matrix_SR = matrix_SR
        self.reach = reach

    @torch.no_grad()
    def __call__(
        self,
        model: LSTMLanguageModel,
        state: LSTMState,
        coming: ComingText,
        *,
        window: int,
        boundaries: int,
        residual: Residual,
    ) -> Tensor:
        """Returns `(P, B, S)`, see `adjoint_gradients`; only the forward pass uses the model."""
        with without_dropout(model):
            embedded_CBE = model.word_vectors(coming.inputs_CB)
            outputs_CBR, _ = model.outputs(embedded_CBE, state)
        residual_CBR = residual(outputs_CBR, coming.targets_CB)
        sums_PBR = torch.stack(
            [
                residual_CBR[first : first + self.reach].sum(0)
                for first in range(0, boundaries * window, window)
            ]
        )
        return sums_PBR.to(self.matrix_SR.dtype) @ self.matrix_SR.t()


def feedback_weights(kind: str, shape: ModelShape) -> int:
    """Returns how many numbers the feedback matrices hold; 0 for other kinds."""
    if kind == "direct":
        return shape.state_size * shape.widths[-1]
    if kind != "feedback":
        return 0
    return sum(
        4 * units * (units + (inputs if index else 0))
        for index, (inputs, units) in enumerate(zip(shape.input_widths, shape.widths, strict=True))
    )


def feedback_floats(kind: str, shape: ModelShape, basis: MemoryBasis, *, steps: int) -> float:
    """Returns the floats that reading `steps` steps holds besides outputs and residuals."""
    rows, last = basis.lanes * steps, shape.widths[-1]
    if kind == "direct":  # layer by layer, each with a reordered copy of its weights
        return rows * (shape.embedding + 3 * last) + shape.layer_weights[-1]
    units = _STEPWISE_KEEPS * sum(shape.widths) + _STEPWISE_BACKWARD * last
    return rows * (shape.embedding + units)
