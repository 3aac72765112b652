"""The element-wise recurrent synthesizer in plain PyTorch: the reference of `recurrent_triton`.

Shapes: M coordinates (all lanes' states, end to end), N units, K heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class RecurrentWeights(NamedTuple):
    """The net's parameters, gates stacked in torch's order: reset, update, new.

    Attributes:
        encoder_N1, encoder_bias_N: from a coordinate to the cell's input.
        input_3NN, input_bias_3N: from the cell's input to its gates.
        hidden_3NN, hidden_bias_3N: from the memory to the gates.
        heads_KN, heads_bias_K: from the memory to the predictions.
    """

    encoder_N1: Tensor
    encoder_bias_N: Tensor
    input_3NN: Tensor
    input_bias_3N: Tensor
    hidden_3NN: Tensor
    hidden_bias_3N: Tensor
    heads_KN: Tensor
    heads_bias_K: Tensor


def recurrent_synthesizer(
    coordinates_M: Tensor, memory_MN: Tensor | None, weights: RecurrentWeights
) -> tuple[Tensor, Tensor]:
    """One step of the GRU (Cho et al. 2014, as torch has it) at every coordinate by itself.

    Args:
        coordinates_M: the states' numbers, detached.
        memory_MN: what the last call returned for these coordinates, or None at their start.
        weights: shared by all coordinates.

    Returns:
        `(predicted_MK, memory_MN)`; the memory is detached, because it is truncated at every call.
    """
    inputs_MN = F.linear(coordinates_M[:, None], weights.encoder_N1, weights.encoder_bias_N)
    if memory_MN is None:
        memory_MN = torch.zeros_like(inputs_MN)
    memory_MN = torch.gru_cell(
        inputs_MN,
        memory_MN,
        weights.input_3NN,
        weights.hidden_3NN,
        weights.input_bias_3N,
        weights.hidden_bias_3N,
    )
    predicted_MK = F.linear(memory_MN, weights.heads_KN, weights.heads_bias_K)
    return predicted_MK, memory_MN.detach()
