"""One LSTM layer, and what it holds for its backward pass.

Shapes: T time, B lanes, I inputs, H units.
"""

import torch
from torch import Tensor, nn

from sglm.kernels.choice import chosen
from sglm.kernels.lstm import LSTMWeights, lstm_layer
from sglm.model.dropout import weight_dropout
from sglm.model.packed_weights import packed_weights
from sglm.runtime.memory_basis import MemoryBasis

# oneDNN keeps a block of memory per call for the backward pass, sixteen times as large as the
# outputs. For long windows of varying length (as while a horizon fills) the blocks differ in size,
# so that memory fragments; for segments of equal length a freed block is used again.
SEGMENT_STEPS = 70

# Floats that cuDNN's LSTM keeps for its backward pass, per step, lane and unit: gates, cell, tanh
# of the cell, output. An estimate, not measured.
_CUDNN_KEEPS = 8.0
# oneDNN's LSTM (CPU, float32) keeps gates and output. For states and their gradients it keeps, at
# every step and once before the first, this many vectors as wide as the wider of input and output,
# and this many of the output's width. Fitted to the workspace that torch's `mkldnn_rnn_layer`
# (2.13) returns for twenty shapes, within 5 %.
_ONEDNN_WIDE, _ONEDNN_NARROW = 6.5, 4.9
# The same in bfloat16, which keeps cells and gradients in float32: 0.70 to 0.75 of its bytes.
_ONEDNN_HALF = 0.71
# Floats that it needs in addition during the backward pass, per step, lane and unit; and per weight
# (oneDNN reorders the matrices, and computes their gradients in its own order).
_BACKWARD_PER_UNIT, _BACKWARD_PER_WEIGHT = 6.0, 3.0


def recurrent_gain(weight_drop_rate: float) -> float:
    """How large recurrent matrices start.

    Weight dropout multiplies the squared norm of what they yield by 1/(1 − rate) on average. From
    orthogonal matrices the state then grows, from a rate of a third or so on, to what no longer
    depends on what is read: at 0.5 such a net learned nothing. So they start smaller, and keep
    norms while the net trains.
    """
    gain: float = (1 - weight_drop_rate) ** 0.5
    return gain


class LSTMLayer(nn.Module):
    """One LSTM layer (Hochreiter & Schmidhuber 1997, with forget gates: Gers et al. 2000).

    Gates are stacked in torch's order: input, forget, cell, output.

    Args:
        inputs, units: I, H.
        weight_drop_rate: with which it will be trained.
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
    """The inputs, split into what each call of torch's LSTM reads (see `SEGMENT_STEPS`)."""
    if inputs_TBI.is_cuda or not torch.is_grad_enabled():
        return (inputs_TBI,)
    return torch.split(inputs_TBI, SEGMENT_STEPS)


def layer_weights(inputs: int, units: int) -> int:
    """How many weights a layer has."""
    return 4 * units * (inputs + units + 1)


def layer_floats(
    inputs: int, units: int, basis: MemoryBasis, *, steps: int, calls: int = 1
) -> float:
    """How many floats a layer keeps for its backward pass; on a CPU its output is included.

    Args:
        inputs, units: I and H.
        basis: for how many lanes, on which device.
        steps: how many are read.
        calls: of torch's LSTM: how many read these steps.
    """
    if not basis.on_cpu:
        return _CUDNN_KEEPS * basis.lanes * steps * units
    vectors = _ONEDNN_WIDE * max(inputs, units) + _ONEDNN_NARROW * units
    workspace = basis.lanes * ((steps + calls) * vectors + steps * 4 * units)
    outputs = basis.lanes * steps * units * basis.product_size
    return workspace * (1.0 if basis.product_size == 1 else _ONEDNN_HALF) + outputs


def layer_backward_floats(inputs: int, units: int, basis: MemoryBasis, *, steps: int) -> float:
    """How many floats a layer needs in addition during its backward pass over so many steps."""
    works = _BACKWARD_PER_UNIT * basis.lanes * steps * units
    return works + _BACKWARD_PER_WEIGHT * layer_weights(inputs, units)
