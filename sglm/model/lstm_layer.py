"""One LSTM layer, and the memory that it needs for its backward pass.

Shapes: T time, B lanes, I inputs, H units.
"""

import torch
from torch import Tensor, nn

from sglm.kernels.choice import chosen
from sglm.kernels.lstm import LSTMWeights, lstm_layer
from sglm.model.dropout import weight_dropout
from sglm.model.packed_weights import packed_weights
from sglm.runtime.memory_basis import MemoryBasis

# The most steps that one call of torch's LSTM reads on a CPU in training. For the backward pass,
# oneDNN keeps a block of memory per call, sixteen times as large as the outputs. With long windows
# of varying length (for example while a horizon fills) the blocks would differ in size and memory
# would fragment; with segments of equal length a freed block is used again.
SEGMENT_STEPS = 70

# Floats that cuDNN's LSTM keeps for its backward pass, per step, lane and unit: gates, cell, tanh
# of the cell, output. An estimate, not measured.
_CUDNN_KEEPS = 8.0
# oneDNN's LSTM (CPU, float32) keeps gates and output. In addition, at every step and once before
# the first, it keeps vectors for states and their gradients: the first number of vectors are as
# wide as the wider of input and output, the second number as wide as the output. Fitted to the
# workspace that torch's `mkldnn_rnn_layer` (2.13) returns for twenty shapes, within 5 %.
_ONEDNN_WIDE, _ONEDNN_NARROW = 6.5, 4.9
# In bfloat16, which keeps cells and gradients in float32, it takes 0.70 to 0.75 of these bytes.
_ONEDNN_HALF = 0.71
# Floats that a layer needs in addition during its backward pass, per step, lane and unit; and per
# weight (oneDNN reorders the matrices, and computes their gradients in its own order).
_BACKWARD_PER_UNIT, _BACKWARD_PER_WEIGHT = 6.0, 3.0


def recurrent_gain(weight_drop_rate: float) -> float:
    """Returns the initial scale of the recurrent matrices.

    Weight dropout multiplies the squared norm of their products by 1/(1 − rate) on average. With
    orthogonal matrices and a rate of about a third or more, the state would then grow until it no
    longer depended on the text: at 0.5 such a network learned nothing. So the matrices start
    smaller, and preserve norms in training, when weights are dropped.
    """
    gain: float = (1 - weight_drop_rate) ** 0.5
    return gain


class LSTMLayer(nn.Module):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000).

    Gates are stacked in torch's order: input, forget, cell, output.

    Args:
        inputs, units: I and H.
        weight_drop_rate: Rate of weight dropout with which the layer will be trained.
    """

    def __init__(self, inputs: int, units: int, *, weight_drop_rate: float = 0.0) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * units, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        self.bias = nn.Parameter(torch.zeros(4 * units))
        for gate_ih, gate_hh in zip(
            self.weight_ih.data.chunk(4), self.weight_hh.data.chunk(4), strict=True
        ):
            nn.init.xavier_uniform_(gate_ih)  # Glorot & Bengio 2010, eq. 16
            # Saxe et al. 2014: norms survive many steps.
            nn.init.orthogonal_(gate_hh, recurrent_gain(weight_drop_rate))
        # Forget gates start open (Jozefowicz et al. 2015).
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
            inputs_TBI: Inputs in any floating type; cast to `compute_dtype`.
            hidden_BH, cell_BH: State before the window.
            weight_drop_rate: See `weight_dropout`.
            compute_dtype: Type of the products.

        Returns:
            `(outputs_TBH, hidden_BH, cell_BH)`: the outputs in `compute_dtype`, the state after the
            window in the type of the state before it.
        """
        weight_hh = weight_dropout(self.weight_hh, weight_drop_rate)
        if weight_hh.is_cuda:
            weights = packed_weights(self.weight_ih, weight_hh, self.bias, dtype=compute_dtype)
        else:
            bias = self.bias.to(compute_dtype)
            # torch requires two biases; a second adds nothing, so it is a constant zero.
            weights = LSTMWeights(
                self.weight_ih.to(compute_dtype),
                weight_hh.to(compute_dtype),
                bias,
                torch.zeros_like(bias),
            )
        # cuDNN can differentiate only what ran in its training mode, whatever the module's mode is.
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
    """Returns the inputs, split into what each call of torch's LSTM reads (see `SEGMENT_STEPS`)."""
    if inputs_TBI.is_cuda or not torch.is_grad_enabled():
        return (inputs_TBI,)
    return torch.split(inputs_TBI, SEGMENT_STEPS)


def layer_weights(inputs: int, units: int) -> int:
    """Returns the number of weights of a layer."""
    return 4 * units * (inputs + units + 1)


def layer_floats(
    inputs: int, units: int, basis: MemoryBasis, *, steps: int, calls: int = 1
) -> float:
    """Returns the floats that a layer keeps for its backward pass; on a CPU including its output.

    Args:
        inputs, units: I and H.
        basis: Number of lanes, and where they are computed.
        steps: Number of steps that are read.
        calls: Number of calls of torch's LSTM that read these steps.
    """
    if not basis.on_cpu:
        return _CUDNN_KEEPS * basis.lanes * steps * units
    vectors = _ONEDNN_WIDE * max(inputs, units) + _ONEDNN_NARROW * units
    workspace = basis.lanes * ((steps + calls) * vectors + steps * 4 * units)
    outputs = basis.lanes * steps * units * basis.product_size
    return workspace * (1.0 if basis.product_size == 1 else _ONEDNN_HALF) + outputs


def layer_backward_floats(inputs: int, units: int, basis: MemoryBasis, *, steps: int) -> float:
    """Returns the floats that a layer needs in addition during its backward pass."""
    works = _BACKWARD_PER_UNIT * basis.lanes * steps * units
    return works + _BACKWARD_PER_WEIGHT * layer_weights(inputs, units)
