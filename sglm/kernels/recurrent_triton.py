"""The element-wise recurrent synthesizer as two Triton kernels, forward and backward.

In PyTorch one call writes and reads some ten arrays of N or 3N numbers for each coordinate. These
kernels only read a coordinate's number and memory and write its new memory and its predictions. The
backward pass computes the gates again from the same inputs.

The cell's input is affine in one number, so its share of the gates is too: W(ax + b) + c =
x·(Wa) + (Wb + c). The first product is done once, outside (`folded_3N2`).

Shapes: M coordinates, N units, K heads, P programs; inside a kernel R rows (coordinates) of a
block, and I, J units, padded to a power of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglm.kernels.choice import suitable
from sglm.kernels.recurrent import RecurrentWeights

LARGEST = 64  # units; the backward pass holds three N×N sums in registers
WARPS = 8
PROGRAMS = 256  # of a backward pass, at most; a constant, so that sums do not depend on the device


@triton.jit
def _gate(
    x_R, h_RJ, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, GATE: tl.constexpr,
    UNITS: tl.constexpr,
):  # fmt: skip
    """One gate's pre-activation: the coordinate's part and the memory's."""
    i = tl.arange(0, UNITS)
    j = tl.arange(0, UNITS)
    row_I = GATE * units + i
    there_I = i < units
    slope_I = tl.load(folded_ptr + 2 * row_I, mask=there_I, other=0.0)
    offset_I = tl.load(folded_ptr + 2 * row_I + 1, mask=there_I, other=0.0)
    offset_I += tl.load(input_bias_ptr + row_I, mask=there_I, other=0.0)
    weight_JI = tl.load(
        hidden_ptr + row_I[None, :] * units + j[:, None],
        mask=there_I[None, :] & (j < units)[:, None],
        other=0.0,
    )
    bias_I = tl.load(hidden_bias_ptr + row_I, mask=there_I, other=0.0)
    of_x_RI = x_R[:, None] * slope_I[None, :] + offset_I[None, :]
    # Not TF32: results are compared with those in float32.
    of_h_RI = tl.dot(h_RJ, weight_JI, input_precision="ieee") + bias_I[None, :]
    return of_x_RI, of_h_RI


@triton.jit
def _cell(
    x_R, h_RJ, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, UNITS: tl.constexpr
):  # fmt: skip
    """Reset, update, new, and the memory's share of new."""
    x_reset, h_reset = _gate(
        x_R, h_RJ, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, 0, UNITS
    )
    x_update, h_update = _gate(
        x_R, h_RJ, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, 1, UNITS
    )
    x_new, h_new = _gate(
        x_R, h_RJ, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, 2, UNITS
    )
    reset_RI = tl.sigmoid(x_reset + h_reset)
    update_RI = tl.sigmoid(x_update + h_update)
    new_RI = 2 * tl.sigmoid(2 * (x_new + reset_RI * h_new)) - 1  # tanh
    return reset_RI, update_RI, new_RI, h_new


@triton.jit
def _forward_kernel(
    x_ptr, memory_ptr, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, heads_ptr,
    heads_bias_ptr, predicted_ptr, out_ptr, coordinates, units,
    HEADS: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, UNITS)
    there_R = row_R < coordinates
    there_RI = there_R[:, None] & (i < units)[None, :]
    offset_RI = row_R[:, None] * units + i[None, :]
    x_R = tl.load(x_ptr + row_R, mask=there_R, other=0.0)
    h_RI = tl.load(memory_ptr + offset_RI, mask=there_RI, other=0.0)
    _, update_RI, new_RI, _ = _cell(
        x_R, h_RI, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, UNITS
    )
    h_RI = new_RI + update_RI * (h_RI - new_RI)
    tl.store(out_ptr + offset_RI, h_RI, mask=there_RI)
    for head in tl.static_range(HEADS):
        weight_I = tl.load(heads_ptr + head * units + i, mask=i < units, other=0.0)
        predicted_R = tl.sum(h_RI * weight_I[None, :], axis=1) + tl.load(heads_bias_ptr + head)
        tl.store(predicted_ptr + row_R * HEADS + head, predicted_R, mask=there_R)


@triton.jit
def _store_gate(
    out_ptr, units, slope_I, offset_I, weight_IJ, bias_I, GATE: tl.constexpr, UNITS: tl.constexpr
):  # fmt: skip
    """A program's share of the gradients in one gate's weights; see `_split` for their order."""
    i = tl.arange(0, UNITS)
    j = tl.arange(0, UNITS)
    row_I = GATE * units + i
    tl.store(
        out_ptr + row_I[:, None] * units + j[None, :],
        weight_IJ,
        mask=(i < units)[:, None] & (j < units)[None, :],
    )
    out_ptr += 3 * units * units
    tl.store(out_ptr + 2 * row_I, slope_I, mask=i < units)
    tl.store(out_ptr + 2 * row_I + 1, offset_I, mask=i < units)
    tl.store(out_ptr + 6 * units + row_I, bias_I, mask=i < units)


@triton.jit
def _backward_kernel(
    x_ptr, memory_ptr, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, heads_ptr,
    predicted_gradient_ptr, partial_ptr, coordinates, units, row_length,
    HEADS: tl.constexpr, UNITS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    i = tl.arange(0, UNITS)
    there_I = i < units
    first_I = tl.load(heads_ptr + i, mask=there_I, other=0.0)
    second_I = tl.load(heads_ptr + (HEADS - 1) * units + i, mask=there_I, other=0.0)
    zeros_IJ, zeros_I = tl.zeros([UNITS, UNITS], tl.float32), tl.zeros([UNITS], tl.float32)
    reset_w, update_w, new_w = zeros_IJ, zeros_IJ, zeros_IJ
    reset_x, update_x, new_x = zeros_I, zeros_I, zeros_I
    reset_1, update_1, new_1, new_h = zeros_I, zeros_I, zeros_I, zeros_I
    first_w, second_w, first_1, second_1 = zeros_I, zeros_I, 0.0, 0.0
    for block in range(BLOCKS):
        row_R = (tl.program_id(0) * BLOCKS + block) * ROWS + tl.arange(0, ROWS)
        there_R = row_R < coordinates
        there_RI = there_R[:, None] & there_I[None, :]
        x_R = tl.load(x_ptr + row_R, mask=there_R, other=0.0)
        h_RI = tl.load(memory_ptr + row_R[:, None] * units + i[None, :], mask=there_RI, other=0.0)
        reset, update, new, h_new = _cell(
            x_R, h_RI, folded_ptr, input_bias_ptr, hidden_ptr, hidden_bias_ptr, units, UNITS
        )
        out_RI = new + update * (h_RI - new)
        # Rows beyond the last coordinate get gradient zero, so they add nothing to the sums below.
        d_first_R = tl.load(predicted_gradient_ptr + row_R * HEADS, mask=there_R, other=0.0)
        d_out = d_first_R[:, None] * first_I[None, :]
        first_w += tl.sum(d_first_R[:, None] * out_RI, axis=0)
        first_1 += tl.sum(d_first_R, axis=0)
        if HEADS == 2:
            d_second_R = tl.load(
                predicted_gradient_ptr + row_R * HEADS + 1, mask=there_R, other=0.0
            )
            d_out += d_second_R[:, None] * second_I[None, :]
            second_w += tl.sum(d_second_R[:, None] * out_RI, axis=0)
            second_1 += tl.sum(d_second_R, axis=0)
        d_update = d_out * (h_RI - new) * update * (1 - update)
        d_new = d_out * (1 - update) * (1 - new * new)
        d_reset = d_new * h_new * reset * (1 - reset)
        d_new_h = d_new * reset
        reset_w += tl.dot(tl.trans(d_reset), h_RI, input_precision="ieee")
        update_w += tl.dot(tl.trans(d_update), h_RI, input_precision="ieee")
        new_w += tl.dot(tl.trans(d_new_h), h_RI, input_precision="ieee")
        reset_x += tl.sum(d_reset * x_R[:, None], axis=0)
        update_x += tl.sum(d_update * x_R[:, None], axis=0)
        new_x += tl.sum(d_new * x_R[:, None], axis=0)
        reset_1 += tl.sum(d_reset, axis=0)
        update_1 += tl.sum(d_update, axis=0)
        new_1 += tl.sum(d_new, axis=0)
        new_h += tl.sum(d_new_h, axis=0)
    out_ptr = partial_ptr + tl.program_id(0) * row_length
    _store_gate(out_ptr, units, reset_x, reset_1, reset_w, reset_1, 0, UNITS)
    _store_gate(out_ptr, units, update_x, update_1, update_w, update_1, 1, UNITS)
    _store_gate(out_ptr, units, new_x, new_1, new_w, new_h, 2, UNITS)
    out_ptr += (3 * units + 9) * units
    tl.store(out_ptr + i, first_w, mask=there_I)
    tl.store(out_ptr + HEADS * units, first_1)
    if HEADS == 2:
        tl.store(out_ptr + units + i, second_w, mask=there_I)
        tl.store(out_ptr + 2 * units + 1, second_1)


def _blocks(units: int) -> tuple[int, int]:
    """Padded units (a matrix product needs at least 16) and rows of a block.

    Not tuned for speed. With `WARPS` warps the compiler keeps nearly all of such a block in a
    Hopper GPU's registers; of larger blocks it spills kilobytes per thread.
    """
    padded = max(16, triton.next_power_of_2(units))
    return padded, 1024 // padded


def _split(row: Tensor, units: int, heads: int) -> tuple[Tensor, ...]:
    """The gradients in folded, input bias, hidden, hidden bias, heads and their bias."""
    sizes = [3 * units * units, 6 * units, 3 * units, heads * units, heads]
    hidden, folded, hidden_bias, heads_weight, heads_bias = row.split(sizes)
    folded_3N2 = folded.view(-1, 2)
    return (
        folded_3N2,
        folded_3N2[:, 1],
        hidden.view(-1, units),
        hidden_bias,
        heads_weight.view(heads, units),
        heads_bias,
    )


class _Recurrent(torch.autograd.Function):
    """Differentiable in the weights, and in nothing else."""

    @staticmethod
    def forward(
        ctx: Any, coordinates_M: Tensor, memory_MN: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        (coordinates,), units = coordinates_M.shape, memory_MN.shape[1]
        heads = weights[-1].shape[0]
        predicted_MK = coordinates_M.new_empty(coordinates, heads)
        out_MN = torch.empty_like(memory_MN)
        padded, rows = _blocks(units)
        _forward_kernel[(triton.cdiv(coordinates, rows),)](
            coordinates_M, memory_MN, *weights, predicted_MK, out_MN, coordinates, units,
            HEADS=heads, UNITS=padded, ROWS=rows, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(coordinates_M, memory_MN, *weights)
        ctx.mark_non_differentiable(out_MN)
        return predicted_MK, out_MN

    @staticmethod
    def backward(ctx: Any, predicted_gradient_MK: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        coordinates_M, memory_MN, *weights, heads_bias_K = ctx.saved_tensors
        (coordinates,), units = coordinates_M.shape, memory_MN.shape[1]
        heads = heads_bias_K.shape[0]
        padded, rows = _blocks(units)
        blocks = triton.cdiv(coordinates, rows * PROGRAMS)
        programs = triton.cdiv(coordinates, rows * blocks)
        row_length = (3 * units + 9 + heads) * units + heads
        # Each program writes its own row, so that the order of summation is fixed.
        partial_PW = coordinates_M.new_empty(programs, row_length)
        _backward_kernel[(programs,)](
            coordinates_M, memory_MN, *weights, predicted_gradient_MK.contiguous(), partial_PW,
            coordinates, units, row_length,
            HEADS=heads, UNITS=padded, ROWS=rows, BLOCKS=blocks, num_warps=WARPS,
        )  # fmt: skip
        return None, None, *_split(partial_PW.sum(dim=0), units, heads)


def can_run(coordinates_M: Tensor, memory_MN: Tensor | None, weights: RecurrentWeights) -> bool:
    """Whether the kernels compute this: in float32, for at most `LARGEST` units and two heads.

    They have no gradient in coordinates and memory, which are detached wherever sglm calls them.
    """
    inputs = (coordinates_M,) if memory_MN is None else (coordinates_M, memory_MN)
    heads, units = weights.heads_KN.shape
    return (
        not any(each.requires_grad for each in inputs)
        and suitable(*inputs, *weights)
        and units <= LARGEST
        and heads <= 2
        and coordinates_M.numel() * units < 2**31
    )


def recurrent_synthesizer(
    coordinates_M: Tensor, memory_MN: Tensor | None, weights: RecurrentWeights
) -> tuple[Tensor, Tensor]:
    """As `sglm.kernels.recurrent.recurrent_synthesizer`, where it `can_run`."""
    units = weights.hidden_3NN.shape[1]
    if memory_MN is None:
        memory_MN = coordinates_M.new_zeros(coordinates_M.shape[0], units)
    affine_N2 = torch.cat((weights.encoder_N1, weights.encoder_bias_N[:, None]), dim=1)
    predicted_MK, memory_MN = _Recurrent.apply(
        coordinates_M.contiguous(),
        memory_MN.contiguous(),
        weights.input_3NN @ affine_N2,
        weights.input_bias_3N,
        weights.hidden_3NN,
        weights.hidden_bias_3N,
        weights.heads_KN,
        weights.heads_bias_K,
    )
    return predicted_MK, memory_MN
