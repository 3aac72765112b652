"""An LSTM layer that stays on the device from its first step to its last, as two Triton kernels.

A library's LSTM reads the recurrent matrix from memory at every step. Here each program computes a
few units for a group of lanes, and keeps their rows of that matrix in its multiprocessor for the
whole window (as in Diamos et al. 2016, "Persistent RNNs"). Between steps the programs of a group
exchange the hidden state (in the backward pass: the gates' gradients) through memory, and wait for
each other. So all programs must run at the same time: there can be no more of them than
multiprocessors. The products that do not depend on the previous step (of the inputs, and for the
weights' gradients) are computed outside the kernels, as one matrix product each.

Sums, cells and gradients within the layer are float32; the factors of a product are of its type.

Shapes: T time, B lanes, I inputs, H units; inside a kernel B lanes of its group, U units of
a program, N = 4U of its gates, K numbers of a block of what is summed over: powers of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglm.kernels.choice import HALF_DTYPES, suitable
from sglm.kernels.lstm import LSTMWeights

OWNED = 16  # units of a program: a matrix product needs at least as many columns
LARGEST = 1152  # units: a program's rows take 147 of the 227 KB of a Hopper multiprocessor
BLOCK = 128  # numbers of K
WARPS = 8


@triton.jit
def _wait_for_group(arrived_ptr, arrivals):
    """Returns when so many programs have arrived: all then see what each of them had stored."""
    arrived_ptr += tl.program_id(1)
    tl.debug_barrier()  # waits for all threads of this program
    seen = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") + 1
    while seen < arrivals:
        seen = tl.atomic_add(arrived_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _forward_kernel(
    gates_ptr, weight_ptr, hidden_ptr, cells_ptr, arrived_ptr, first, last, lanes, units,
    LANES: tl.constexpr, OWNED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Steps `first` to `last`. The inputs' part of the gates, T·B·4H, is replaced by the gates."""
    b = tl.program_id(1) * LANES + tl.arange(0, LANES)
    n = tl.arange(0, 4 * OWNED)
    u = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    unit_N = tl.program_id(0) * OWNED + n % OWNED
    row_N = n // OWNED * units + unit_N
    there_B1 = (b < lanes)[:, None]
    there_BU = there_B1 & (u < units)[None, :]
    weights = ()
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK + tl.arange(0, BLOCK)
        there_KN = (k < units)[:, None] & (unit_N < units)[None, :]
        weight_KN = weight_ptr + row_N[None, :] * units + k[:, None]
        weights += (tl.load(weight_KN, mask=there_KN, other=0.0),)  # type: ignore[assignment]
    offset_BU = b[:, None] * units + u[None, :]
    c_BU = tl.load(cells_ptr + first * lanes * units + offset_BU, mask=there_BU, other=0.0)
    for t in range(first, last):
        gates_BN = gates_ptr + (t * lanes + b[:, None]) * 4 * units + row_N[None, :]
        there_BN = there_B1 & (unit_N < units)[None, :]
        sums_BN = tl.load(gates_BN, mask=there_BN, other=0.0).to(tl.float32)
        for block in tl.static_range(BLOCKS):
            k = block * BLOCK + tl.arange(0, BLOCK)
            h_BK = tl.load(
                hidden_ptr + (t * lanes + b[:, None]) * units + k[None, :],
                mask=there_B1 & (k < units)[None, :],
                other=0.0,
                cache_modifier=".cg",  # written by others: not from this multiprocessor's cache
            )
            sums_BN = tl.dot(h_BK, weights[block], sums_BN, input_precision="ieee")
        # N is (2, 2, U): input, forget; cell, output.
        sums_BU22 = tl.permute(tl.reshape(sums_BN, [LANES, 2, 2, OWNED]), [0, 3, 1, 2])
        sums_of_0_2, sums_of_1_3 = tl.split(sums_BU22)
        i_BU, g_BU = tl.split(sums_of_0_2)
        f_BU, o_BU = tl.split(sums_of_1_3)
        i_BU, f_BU, o_BU = tl.sigmoid(i_BU), tl.sigmoid(f_BU), tl.sigmoid(o_BU)
        g_BU = _tanh(g_BU)
        c_BU = f_BU * c_BU + i_BU * g_BU
        h_BU = o_BU * _tanh(c_BU)
        after = (t + 1) * lanes * units
        tl.store(hidden_ptr + after + offset_BU, h_BU, mask=there_BU)
        tl.store(cells_ptr + after + offset_BU, c_BU, mask=there_BU)
        gates_BU = gates_ptr + (t * lanes + b[:, None]) * 4 * units + u[None, :]
        tl.store(gates_BU, i_BU, mask=there_BU)
        tl.store(gates_BU + units, f_BU, mask=there_BU)
        tl.store(gates_BU + 2 * units, g_BU, mask=there_BU)
        tl.store(gates_BU + 3 * units, o_BU, mask=there_BU)
        if t + 1 < last:
            _wait_for_group(arrived_ptr, (t + 1 - first) * tl.num_programs(0))


@triton.jit
def _backward_kernel(
    gates_ptr, weight_ptr, cells_ptr, to_hidden_ptr, to_cell_ptr, to_gates_ptr, arrived_ptr, first,
    last, steps, lanes, units,
    LANES: tl.constexpr, OWNED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Steps `last` − 1 down to `first`: gradients in the gates' pre-activations and the cells."""
    b = tl.program_id(1) * LANES + tl.arange(0, LANES)
    u = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    there_B1 = (b < lanes)[:, None]
    there_BU = there_B1 & (u < units)[None, :]
    weights = ()
    for block in tl.static_range(BLOCKS):
        k = block * BLOCK + tl.arange(0, BLOCK)
        there_KU = (k < 4 * units)[:, None] & (u < units)[None, :]
        weight_KU = weight_ptr + k[:, None] * units + u[None, :]
        weights += (tl.load(weight_KU, mask=there_KU, other=0.0),)  # type: ignore[assignment]
    offset_BU = b[:, None] * units + u[None, :]
    to_c_BU = tl.load(to_cell_ptr + offset_BU, mask=there_BU, other=0.0)
    for back in range(first, last):
        t = last - 1 - (back - first)
        before = t * lanes * units
        to_h_BU = tl.load(to_hidden_ptr + before + offset_BU, mask=there_BU, other=0.0)
        to_h_BU = to_h_BU.to(tl.float32)
        if t + 1 < steps:
            for block in tl.static_range(BLOCKS):
                k = block * BLOCK + tl.arange(0, BLOCK)
                to_gates_BK = tl.load(
                    to_gates_ptr + ((t + 1) * lanes + b[:, None]) * 4 * units + k[None, :],
                    mask=there_B1 & (k < 4 * units)[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                )
                to_h_BU = tl.dot(to_gates_BK, weights[block], to_h_BU, input_precision="ieee")
        gates_BU = (t * lanes + b[:, None]) * 4 * units + u[None, :]
        i_BU = tl.load(gates_ptr + gates_BU, mask=there_BU, other=0.0).to(tl.float32)
        f_BU = tl.load(gates_ptr + gates_BU + units, mask=there_BU, other=0.0).to(tl.float32)
        g_BU = tl.load(gates_ptr + gates_BU + 2 * units, mask=there_BU, other=0.0).to(tl.float32)
        o_BU = tl.load(gates_ptr + gates_BU + 3 * units, mask=there_BU, other=0.0).to(tl.float32)
        c_before_BU = tl.load(cells_ptr + before + offset_BU, mask=there_BU, other=0.0)
        c_BU = tl.load(cells_ptr + before + lanes * units + offset_BU, mask=there_BU, other=0.0)
        tanh_BU = _tanh(c_BU)
        to_c_BU += to_h_BU * o_BU * (1 - tanh_BU * tanh_BU)
        tl.store(to_gates_ptr + gates_BU, to_c_BU * g_BU * i_BU * (1 - i_BU), mask=there_BU)
        tl.store(
            to_gates_ptr + gates_BU + units, to_c_BU * c_before_BU * f_BU * (1 - f_BU),
            mask=there_BU,
        )  # fmt: skip
        tl.store(
            to_gates_ptr + gates_BU + 2 * units, to_c_BU * i_BU * (1 - g_BU * g_BU), mask=there_BU
        )
        tl.store(
            to_gates_ptr + gates_BU + 3 * units, to_h_BU * tanh_BU * o_BU * (1 - o_BU),
            mask=there_BU,
        )  # fmt: skip
        to_c_BU = to_c_BU * f_BU
        if t > first:
            _wait_for_group(arrived_ptr, (last - t) * tl.num_programs(0))
    tl.store(to_cell_ptr + offset_BU, to_c_BU, mask=there_BU)


def _split(lanes: int, units: int, programs: int) -> tuple[int, int] | None:
    """Programs of a group, and its lanes; None where all groups' programs cannot run at once.

    With more lanes in a group the compiler runs out of registers.
    """
    owners = triton.cdiv(units, OWNED)
    for group in (16, 32):
        if owners * triton.cdiv(lanes, group) <= programs:
            return owners, group
    return None


def _constants(lanes: int, units: int, *, summed: int, programs: int) -> dict[str, int]:
    """A kernel's constants, for products that sum over so many numbers."""
    split = _split(lanes, units, programs)
    assert split is not None
    block = min(BLOCK, max(16, triton.next_power_of_2(units)))
    blocks = triton.cdiv(summed, block)
    return {"LANES": split[1], "OWNED": OWNED, "BLOCK": block, "BLOCKS": blocks}


def _run(kernel: Any, *tensors: Tensor, steps: int, numbers: tuple[int, ...], summed: int) -> None:
    """Runs a kernel over all steps.

    Args:
        kernel: one of the two.
        tensors: its pointers.
        steps: T.
        numbers: its last integers, of which the last are B and H.
        summed: over how many numbers its products sum.
    """
    lanes, units = numbers[-2:]
    device = tensors[0].device
    constants = _constants(lanes, units, summed=summed, programs=_programs(device))
    grid = triton.cdiv(units, OWNED), triton.cdiv(lanes, constants["LANES"])
    launches = [(0, steps)]
    if grid[0] > 1 and _one_by_one():  # such programs cannot wait for each other
        launches = [(step, step + 1) for step in range(steps)]
    for first, last in launches if kernel is _forward_kernel else reversed(launches):
        arrived = torch.zeros(grid[1], dtype=torch.int32, device=device)
        kernel[grid](
            *tensors, arrived, first, last, *numbers, **constants,
            num_warps=WARPS, launch_cooperative_grid=True,  # all programs at once, or an error
        )  # fmt: skip


def _one_by_one() -> bool:
    """Whether programs run one after the other: the interpreter's do."""
    return bool(triton.knobs.runtime.interpret)


def _programs(device: torch.device) -> int:
    """How many can run at once."""
    if device.type != "cuda":  # under the interpreter
        return 128
    return torch.cuda.get_device_properties(device).multi_processor_count


def fits(lanes: int, units: int, device: torch.device) -> bool:
    """Whether a layer of that size fits on the device."""
    return units <= LARGEST and _split(lanes, units, _programs(device)) is not None


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs_TBI: Tensor,
        hidden_BH: Tensor,
        cell_BH: Tensor,
        input_4HI: Tensor,
        hidden_4HH: Tensor,
        bias_4H: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps, lanes, inputs = inputs_TBI.shape
        units = hidden_BH.shape[1]
        inputs_MI = inputs_TBI.reshape(-1, inputs)
        gates_MG = torch.addmm(bias_4H, inputs_MI, input_4HI.t())
        hiddens = inputs_TBI.new_empty(steps + 1, lanes, units)
        cells = torch.empty_like(hiddens, dtype=torch.float32)
        hiddens[0], cells[0] = hidden_BH, cell_BH
        _run(
            _forward_kernel, gates_MG, hidden_4HH.contiguous(), hiddens, cells,
            steps=steps, numbers=(lanes, units), summed=units,
        )  # fmt: skip
        ctx.save_for_backward(inputs_MI, input_4HI, hidden_4HH, gates_MG, hiddens, cells)
        return hiddens[1:], hiddens[-1], cells[-1].to(cell_BH.dtype)

    @staticmethod
    def backward(
        ctx: Any, to_outputs_TBH: Tensor, to_hidden_BH: Tensor, to_cell_BH: Tensor
    ) -> tuple[Tensor, ...]:
        inputs_MI, input_4HI, hidden_4HH, gates_MG, hiddens, cells = ctx.saved_tensors
        steps, lanes, units = to_outputs_TBH.shape
        to_hiddens = to_outputs_TBH.clone(memory_format=torch.contiguous_format)
        to_hiddens[-1] += to_hidden_BH
        to_cell = to_cell_BH.to(torch.float32, copy=True).contiguous()
        to_gates_MG = torch.empty_like(gates_MG)
        _run(
            _backward_kernel, gates_MG, hidden_4HH.contiguous(), cells, to_hiddens, to_cell,
            to_gates_MG, steps=steps, numbers=(steps, lanes, units), summed=4 * units,
        )  # fmt: skip
        transposed_GM = to_gates_MG.t()
        return (
            (to_gates_MG @ input_4HI).view(steps, lanes, -1),
            to_gates_MG[:lanes] @ hidden_4HH,
            to_cell.to(to_cell_BH.dtype),
            transposed_GM @ inputs_MI,
            transposed_GM @ hiddens[:-1].flatten(0, 1),
            to_gates_MG.sum(dim=0, dtype=torch.float32).to(to_gates_MG.dtype),
        )


def can_run(
    inputs_TBI: Tensor,
    hidden_BH: Tensor,
    cell_BH: Tensor,
    *,
    weights: LSTMWeights,
    training: bool,
) -> bool:
    """Whether the kernels compute this: in half types, of a size that `fits`.

    In float32 the recurrent matrix of a large layer would not fit.
    """
    if not suitable(inputs_TBI, hidden_BH, cell_BH, *weights, dtypes=HALF_DTYPES):
        return False
    steps, (lanes, units) = len(inputs_TBI), hidden_BH.shape
    gates = 4 * steps * lanes * units
    return gates < 2**31 and fits(lanes, units, inputs_TBI.device)


def lstm_layer(
    inputs_TBI: Tensor,
    hidden_BH: Tensor,
    cell_BH: Tensor,
    *,
    weights: LSTMWeights,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `sglm.kernels.lstm.lstm_layer`, where it `can_run`; differentiable in either mode."""
    outputs_TBH, hidden_BH, cell_BH = _Layer.apply(inputs_TBI, hidden_BH, cell_BH, *weights[:3])
    return outputs_TBH, hidden_BH, cell_BH
