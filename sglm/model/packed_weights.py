"""The weights of an LSTM layer in one block of memory, as cuDNN needs them.

torch checks whether the four tensors given to a cuDNN LSTM lie in one block in cuDNN's order: both
matrices, then both biases, gates in torch's own order. If they do not, it warns, and copies them
into such a block at every call (aten/src/ATen/native/cudnn/RNN.cpp: `try_get_weight_buf`,
`_cudnn_rnn`). `nn.LSTM` makes its parameters views of one block for this reason. Here the weights
are copied at every window anyway (cast, or masked by weight dropout), so they are copied directly
into such a block.

If a version of cuDNN needs another order, torch detects that, warns, and copies them again.
"""

from typing import Any

import torch
from torch import Tensor

from sglm.kernels.lstm import LSTMWeights


def packed_weights(
    weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, *, dtype: torch.dtype
) -> LSTMWeights:
    """Returns `(weight_ih, weight_hh, bias, zero bias)` in `dtype`, as views of one block.

    Gradients flow to the arguments, in their own types; the second bias is a constant.

    Args:
        weight_ih, weight_hh, bias: The weights, `(4H, I)`, `(4H, H)` and `(4H,)`.
        dtype: Type of the products.
    """
    return LSTMWeights(*_Pack.apply(weight_ih, weight_hh, bias, dtype))  # type: ignore[no-untyped-call]


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        # An autograd function, and not `torch.cat`, whose backward pass would also copy all
        # gradients into one block and out of it again.
        parts = (weight_ih, weight_hh, bias)
        ctx.dtypes = [part.dtype for part in parts]
        sizes = [*(part.numel() for part in parts), bias.numel()]
        block = weight_ih.new_empty(sum(sizes), dtype=dtype)
        flat_ih, flat_hh, flat_bias, zero_bias = torch.split(block, sizes)
        flat_ih.view_as(weight_ih).copy_(weight_ih)
        flat_hh.view_as(weight_hh).copy_(weight_hh)
        flat_bias.copy_(bias)
        zero_bias.zero_()
        ctx.mark_non_differentiable(zero_bias)
        return flat_ih.view_as(weight_ih), flat_hh.view_as(weight_hh), flat_bias, zero_bias

    @staticmethod
    def backward(ctx: Any, *to_parts: Tensor) -> tuple[Tensor | None, ...]:
        to_weights = (
            to_part.to(dtype) for to_part, dtype in zip(to_parts, ctx.dtypes, strict=False)
        )
        return (*to_weights, None)
