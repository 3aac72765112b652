"""Where PyTorch would leave many small launches: each idea as one function, and who computes it.

Every function has a plain PyTorch reference, which is what runs. Where the environment variable
`SGLM_TRITON` is 1, Triton kernels compute the same on CUDA tensors of a size and type that they
know. They are off by default because nobody has measured them yet: they are tested under Triton's
interpreter and compile for a GPU, and whether they are faster there is unknown
(`scripts.benchmarks.kernels` measures it).

Triton is only imported when a kernel is asked for. Shapes: as in the references.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from sglm.errors import ConfigError
from sglm.kernels import boundary, dropout, lstm, recurrent
from sglm.kernels.lstm import LSTMWeights
from sglm.kernels.recurrent import RecurrentWeights

_HALF_DTYPES = (torch.float16, torch.bfloat16)
_LAYER_DTYPES = (torch.float32, *_HALF_DTYPES)


def wanted(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether kernels were asked for, and these tensors are for them.

    Raises:
        ConfigError: they were asked for, and Triton is not installed.
    """
    if os.environ.get("SGLM_TRITON") != "1" or not all(each.is_cuda for each in tensors):
        return False
    if find_spec("triton") is None:
        raise ConfigError(
            "SGLM_TRITON=1 asks for Triton's kernels, and the package triton is not installed; "
            "install it, or unset SGLM_TRITON"
        )
    # Places in an array are counted in 32 bits.
    return all(each.dtype in dtypes and 0 < each.numel() < 2**31 for each in tensors)


def recurrent_synthesizer(
    coordinates_M: Tensor, memory_MN: Tensor | None, weights: RecurrentWeights
) -> tuple[Tensor, Tensor]:
    """See `sglm.kernels.recurrent.recurrent_synthesizer`."""
    inputs = (coordinates_M,) if memory_MN is None else (coordinates_M, memory_MN)
    # The kernel has no gradient in its inputs, which are detached wherever sglm calls it.
    if not any(each.requires_grad for each in inputs) and wanted(*inputs, *weights):
        from sglm.kernels import recurrent_triton as kernel

        heads, units = weights.heads_KN.shape
        if units <= kernel.LARGEST and heads <= 2 and coordinates_M.numel() * units < 2**31:
            return kernel.recurrent_synthesizer(coordinates_M, memory_MN, weights)
    return recurrent.recurrent_synthesizer(coordinates_M, memory_MN, weights)


def injected_gradient(
    said_BS: Tensor, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """See `sglm.kernels.boundary.injected_gradient`."""
    if wanted(said_BS, unit, factor, *([] if longest is None else [longest])):
        from sglm.kernels import boundary_triton as kernel

        if said_BS.shape[1] <= kernel.LARGEST:
            return kernel.injected_gradient(said_BS, unit, longest, factor)
    return boundary.injected_gradient(said_BS, unit, longest, factor)


def regularized_dropout(
    outputs_TBH: Tensor, mask_BH: Tensor | None, activation: float, temporal: float
) -> tuple[Tensor, Tensor]:
    """See `sglm.kernels.dropout.regularized_dropout`."""
    # Without a mask or without a penalty there is little to fuse.
    if mask_BH is None or not (activation or temporal):
        return dropout.regularized_dropout(outputs_TBH, mask_BH, activation, temporal)
    if wanted(outputs_TBH, mask_BH, dtypes=_LAYER_DTYPES):
        from sglm.kernels import dropout_triton as kernel

        return kernel.regularized_dropout(outputs_TBH, mask_BH, activation, temporal)
    return dropout.regularized_dropout(outputs_TBH, mask_BH, activation, temporal)


def lstm_layer(
    inputs_TBI: Tensor, hidden_BH: Tensor, cell_BH: Tensor, weights: LSTMWeights, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sglm.kernels.lstm.lstm_layer`."""
    # In float32 the recurrent matrix of a large layer would not fit.
    if wanted(inputs_TBI, hidden_BH, cell_BH, *weights, dtypes=_HALF_DTYPES):
        from sglm.kernels import lstm_triton as kernel

        steps, (lanes, units) = len(inputs_TBI), hidden_BH.shape
        gates = 4 * steps * lanes * units
        if gates < 2**31 and kernel.can_run(lanes, units, inputs_TBI.device):
            return kernel.lstm_layer(inputs_TBI, hidden_BH, cell_BH, weights)
    return lstm.lstm_layer(inputs_TBI, hidden_BH, cell_BH, weights, training)
