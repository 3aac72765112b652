"""One LSTM layer over a window, by torch's own kernels: the reference of `lstm_triton`.

Shapes: T time, B lanes, I inputs, H units. Gates are stacked in torch's order: input, forget, cell,
output.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_FEW_LANES = 16


class LSTMWeights(NamedTuple):
    """A layer's weights, all in the type of the products.

    Attributes:
        input_4HI, hidden_4HH, bias_4H: Weights of the inputs, of the hidden state, and the bias.
        zero_4H: The second bias that torch requires, a constant zero.
    """

    input_4HI: Tensor
    hidden_4HH: Tensor
    bias_4H: Tensor
    zero_4H: Tensor


def lstm_layer(
    inputs_TBI: Tensor,
    hidden_BH: Tensor,
    cell_BH: Tensor,
    *,
    weights: LSTMWeights,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the layer over the window (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Args:
        inputs_TBI, hidden_BH, cell_BH: Inputs, and the state before them, in the type of the
            products.
        weights: The layer's weights.
        training: Whether the result may be differentiated, which cuDNN must know.

    Returns:
        `(outputs_TBH, hidden_BH, cell_BH)`, in the same type, with the state after the window.
    """
    if not training and _cell_is_faster(inputs_TBI):
        hidden_BH, cell_BH = torch.lstm_cell(inputs_TBI[0], (hidden_BH, cell_BH), *weights)
        return hidden_BH[None], hidden_BH, cell_BH
    outputs_TBH, hidden_1BH, cell_1BH = torch.lstm(
        inputs_TBI,
        [hidden_BH.unsqueeze(0), cell_BH.unsqueeze(0)],
        weights,
        True,  # has biases
        1,  # layers
        0.0,  # torch's own dropout between layers: not used here
        training,
        False,  # bidirectional
        False,  # batch first
    )
    return outputs_TBH, hidden_1BH.squeeze(0), cell_1BH.squeeze(0)


def _cell_is_faster(inputs_TBI: Tensor) -> bool:
    """Returns whether this is a single step that torch's own LSTM cell computes faster.

    oneDNN, which `torch.lstm` calls on a CPU, reorders the weights at every call. That takes 5 to
    26 times as long as a step of one lane (192 to 1,150 units), and pays from about twenty lanes
    on.
    """
    steps, lanes, _ = inputs_TBI.shape
    plain = not inputs_TBI.is_cuda and inputs_TBI.dtype in (torch.float32, torch.float64)
    return steps == 1 and lanes <= _FEW_LANES and plain
