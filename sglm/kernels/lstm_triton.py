"""An LSTM layer that stays on the device from its first step to its last, as two Triton kernels.

A library's LSTM reads the recurrent matrix from memory at every step. Here each program computes a
few units for a group of lanes, and keeps their rows of that matrix in its multiprocessor for the
whole window (as in Diamos et al. 2016, "Persistent RNNs"). Between steps the programs of a group
exchange the hidden state (in the backward pass: the gates' gradients) through memory, and wait for
each other. So all programs of a launch must run at the same time: there can be no more of them than
multiprocessors, and groups of lanes for which there is no room come in later launches. The products
that do not depend on the previous step (of the inputs, and for the weights' gradients) are computed
outside the kernels, as one matrix product each.

What a step costs is waiting, not arithmetic. So what it reads is asked for early, several blocks at
a time; and each warp sums over a part of every block of its own, so that no number is read by two.
Rows are padded to a multiple of `ALIGNED` units, with zeros, so that 16 bytes are read at once.

Sums, cells and gradients within the layer are float32; the factors of a product are of its type.

Shapes: T time, B lanes, I inputs, H units, padded in this module; inside a kernel B lanes of its
group, U units of a program, N = 4U of its gates, S warps, K numbers of a warp's part of a block.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sglm.kernels.choice import HALF_DTYPES, suitable
from sglm.kernels.lstm import LSTMWeights

OWNED = 16  # units of a program: a matrix product needs at least as many columns
LARGEST = 1152  # units: a program's rows take 147 of the 227 KB of a Hopper multiprocessor
ALIGNED = 16
WARPS = 8
# K, and how many blocks are asked for before the first of them is needed. With more the compiler
# runs out of registers.
FORWARD, BACKWARD = (16, 9), (64, 3)


@triton.jit
def _arrive(arrived_ptr):
    """Says that this program has stored what the others wait for."""
    tl.debug_barrier()  # waits for all threads of this program
    tl.atomic_add(arrived_ptr + tl.program_id(1), 1, sem="release")


@triton.jit
def _wait(arrived_ptr, arrivals):
    """Returns when so many programs have arrived: what they stored can be seen then."""
    arrived_ptr += tl.program_id(1)
    seen = tl.atomic_add(arrived_ptr, 0, sem="acquire")
    while seen < arrivals:
        seen = tl.atomic_add(arrived_ptr, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _columns(
    weight_ptr, column_N, there_N, summed, to_next, to_column, block: tl.constexpr,
    SPLIT: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """A block of the factor that stays: S·K rows of N columns, in steps of so many numbers."""
    k_SK = tl.arange(0, SPLIT)[:, None] * PART + tl.arange(0, PART)[None, :]
    k_SK1 = (k_SK + block * SPLIT * PART)[:, :, None]
    pointers = weight_ptr + k_SK1 * to_next + column_N[None, None, :] * to_column
    return tl.load(pointers, mask=(k_SK1 < summed) & there_N[None, None, :], other=0.0)


@triton.jit
def _rows(
    rows_ptr, b, there_B, summed, block: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr
):
    """A block of what the programs exchange, of each lane."""
    k_SK = tl.arange(0, SPLIT)[:, None] * PART + tl.arange(0, PART)[None, :]
    k_S1K = (k_SK + block * SPLIT * PART)[:, None, :]
    return tl.load(
        rows_ptr + b[None, :, None] * summed + k_S1K,
        mask=there_B[None, :, None] & (k_S1K < summed),
        other=0.0,
        cache_modifier=".cg",  # written by others: not from this multiprocessor's cache
    )


# Where a tensor lies in the threads of a program, and when, is the compiler's choice. A load that
# never happens, with the tensor as its default, keeps it where a load would put it, until then. Its
# mask is false for all numbers that `arange` can give, which is noticed late enough: there is no
# such load in the machine code.


@triton.jit
def _add_product(sums, rows, weights, rows_ptr, b, SPLIT: tl.constexpr, PART: tl.constexpr):
    """Adds a block's products, each warp those of its part."""
    k_SK = tl.arange(0, SPLIT)[:, None] * PART + tl.arange(0, PART)[None, :]
    k_S1K = k_SK[:, None, :]
    # Else the compiler would wait for each block right after it was asked for.
    pointers = rows_ptr + b[None, :, None] * (SPLIT * PART) + k_S1K
    rows = tl.load(pointers, mask=k_S1K < 0, other=rows)
    return tl.dot(rows, weights, sums, input_precision="ieee")


@triton.jit
def _total(sums, scratch_ptr, SPLIT: tl.constexpr, LANES: tl.constexpr, COLUMNS: tl.constexpr):
    """The warps' sums added up, each thread a few of the results."""
    SUMS: tl.constexpr = LANES * COLUMNS
    at_SM = tl.arange(0, SPLIT)[:, None] * SUMS + tl.arange(0, SUMS)[None, :]
    EACH: tl.constexpr = SUMS // (SPLIT * 32)  # results of a thread
    if EACH < 4:
        at_SM += tl.program_id(0) * EACH  # not aligned to more: it takes no more
    # Else every warp would add up all of them, and go on computing with all of them.
    sums = tl.reshape(sums, [SPLIT, SUMS])
    sums = tl.load(scratch_ptr + at_SM, mask=at_SM < 0, other=sums)
    return tl.reshape(tl.sum(sums, 0), [LANES, COLUMNS])


@triton.jit
def _forward_kernel(
    gates_ptr, weight_ptr, hidden_ptr, cells_ptr, arrived_ptr, first, last, first_lane, lanes,
    units,
    LANES: tl.constexpr, OWNED: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr,
    BLOCKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Steps `first` to `last`. The inputs' part of the gates, T·B·4H, is replaced by the gates."""
    b = first_lane + tl.program_id(1) * LANES + tl.arange(0, LANES)
    n = tl.arange(0, 4 * OWNED)
    u = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    unit_N = tl.program_id(0) * OWNED + n % OWNED
    row_N = n // OWNED * units + unit_N
    there_B, there_N = b < lanes, unit_N < units
    there_BU = there_B[:, None] & (u < units)[None, :]
    weights = ()
    for block in tl.static_range(BLOCKS):
        weights += (  # type: ignore[assignment]
            _columns(weight_ptr, row_N, there_N, units, 1, units, block, SPLIT, PART),
        )
    offset_BU = b[:, None] * units + u[None, :]
    c_BU = tl.load(cells_ptr + first * lanes * units + offset_BU, mask=there_BU, other=0.0)
    for t in range(first, last):
        gates_BN = gates_ptr + (t * lanes + b[:, None]) * 4 * units + row_N[None, :]
        inputs_BN = tl.load(gates_BN, mask=there_B[:, None] & there_N[None, :], other=0.0)
        if t > first:
            _wait(arrived_ptr, (t - first) * tl.num_programs(0))
        before_ptr = hidden_ptr + t * lanes * units
        rows = ()
        for block in tl.static_range(AHEAD):
            rows += (  # type: ignore[assignment]
                _rows(before_ptr, b, there_B, units, block, SPLIT, PART),
            )
        sums_SBN = tl.zeros([SPLIT, LANES, 4 * OWNED], tl.float32)
        for block in tl.static_range(BLOCKS):
            if block + AHEAD < BLOCKS:
                rows += (  # type: ignore[assignment]
                    _rows(before_ptr, b, there_B, units, block + AHEAD, SPLIT, PART),
                )
            sums_SBN = _add_product(
                sums_SBN, rows[block], weights[block], before_ptr, b, SPLIT, PART
            )
        sums_BN = _total(sums_SBN, cells_ptr, SPLIT, LANES, 4 * OWNED)
        sums_BN += inputs_BN.to(tl.float32)
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
        if t + 1 < last:
            _arrive(arrived_ptr)
        tl.store(cells_ptr + after + offset_BU, c_BU, mask=there_BU)
        gates_BU = gates_ptr + (t * lanes + b[:, None]) * 4 * units + u[None, :]
        tl.store(gates_BU, i_BU, mask=there_BU)
        tl.store(gates_BU + units, f_BU, mask=there_BU)
        tl.store(gates_BU + 2 * units, g_BU, mask=there_BU)
        tl.store(gates_BU + 3 * units, o_BU, mask=there_BU)


@triton.jit
def _backward_kernel(
    gates_ptr, weight_ptr, cells_ptr, to_hidden_ptr, to_cell_ptr, to_gates_ptr, arrived_ptr, first,
    last, first_lane, steps, lanes, units,
    LANES: tl.constexpr, OWNED: tl.constexpr, SPLIT: tl.constexpr, PART: tl.constexpr,
    BLOCKS: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Steps `last` − 1 down to `first`: gradients in the gates' pre-activations and the cells."""
    b = first_lane + tl.program_id(1) * LANES + tl.arange(0, LANES)
    u = tl.program_id(0) * OWNED + tl.arange(0, OWNED)
    there_B = b < lanes
    there_BU = there_B[:, None] & (u < units)[None, :]
    weights = ()
    for block in tl.static_range(BLOCKS):
        weights += (  # type: ignore[assignment]
            _columns(weight_ptr, u, u < units, 4 * units, units, 1, block, SPLIT, PART),
        )
    offset_BU = b[:, None] * units + u[None, :]
    to_c_BU = tl.load(to_cell_ptr + offset_BU, mask=there_BU, other=0.0)
    for back in range(first, last):
        t = last - 1 - (back - first)
        before = t * lanes * units
        to_h_BU = tl.load(to_hidden_ptr + before + offset_BU, mask=there_BU, other=0.0)
        to_h_BU = to_h_BU.to(tl.float32)
        gates_BU = (t * lanes + b[:, None]) * 4 * units + u[None, :]
        i_BU = tl.load(gates_ptr + gates_BU, mask=there_BU, other=0.0).to(tl.float32)
        f_BU = tl.load(gates_ptr + gates_BU + units, mask=there_BU, other=0.0).to(tl.float32)
        g_BU = tl.load(gates_ptr + gates_BU + 2 * units, mask=there_BU, other=0.0).to(tl.float32)
        o_BU = tl.load(gates_ptr + gates_BU + 3 * units, mask=there_BU, other=0.0).to(tl.float32)
        c_before_BU = tl.load(cells_ptr + before + offset_BU, mask=there_BU, other=0.0)
        c_BU = tl.load(cells_ptr + before + lanes * units + offset_BU, mask=there_BU, other=0.0)
        if t + 1 < last:
            _wait(arrived_ptr, (last - 1 - t) * tl.num_programs(0))
        if t + 1 < steps:
            after_ptr = to_gates_ptr + (t + 1) * lanes * 4 * units
            rows = ()
            for block in tl.static_range(AHEAD):
                rows += (  # type: ignore[assignment]
                    _rows(after_ptr, b, there_B, 4 * units, block, SPLIT, PART),
                )
            sums_SBU = tl.zeros([SPLIT, LANES, OWNED], tl.float32)
            for block in tl.static_range(BLOCKS):
                if block + AHEAD < BLOCKS:
                    rows += (  # type: ignore[assignment]
                        _rows(after_ptr, b, there_B, 4 * units, block + AHEAD, SPLIT, PART),
                    )
                sums_SBU = _add_product(
                    sums_SBU, rows[block], weights[block], after_ptr, b, SPLIT, PART
                )
            to_h_BU += _total(sums_SBU, cells_ptr, SPLIT, LANES, OWNED)
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
        if t > first:
            _arrive(arrived_ptr)
        to_c_BU = to_c_BU * f_BU
    tl.store(to_cell_ptr + offset_BU, to_c_BU, mask=there_BU)


def _split(lanes: int, units: int, programs: int) -> tuple[int, int, int]:
    """Programs of a group, its lanes, and groups of a launch, such that these programs can run at
    once. With more lanes in a group the compiler runs out of registers.
    """
    owners = triton.cdiv(units, OWNED)
    at_once = max(1, programs // owners)
    group = 16 if triton.cdiv(lanes, 16) <= at_once else 32
    return owners, group, min(at_once, triton.cdiv(lanes, group))


def _constants(group: int, *, part: int, ahead: int, summed: int) -> dict[str, int]:
    """A kernel's constants, for products that sum over so many numbers."""
    blocks = triton.cdiv(summed, WARPS * part)
    constants = {"LANES": group, "OWNED": OWNED, "SPLIT": WARPS, "PART": part, "BLOCKS": blocks}
    return constants | {"AHEAD": min(ahead, blocks)}


def _run(kernel: Any, *tensors: Tensor, steps: int, numbers: tuple[int, ...]) -> None:
    """Runs a kernel over all steps and lanes.

    Args:
        kernel: one of the two.
        tensors: its pointers.
        steps: T.
        numbers: its last integers, of which the last are B and H.
    """
    lanes, units = numbers[-2:]
    device, forwards = tensors[0].device, kernel is _forward_kernel
    owners, group, at_once = _split(lanes, units, _programs(device))
    (part, ahead), summed = (FORWARD, units) if forwards else (BACKWARD, 4 * units)
    constants = _constants(group, part=part, ahead=ahead, summed=summed)
    launches = [(0, steps)]
    if owners > 1 and _one_by_one():  # such programs cannot wait for each other
        launches = [(step, step + 1) for step in range(steps)]
    for first_lane in range(0, lanes, group * at_once):
        groups = min(at_once, triton.cdiv(lanes - first_lane, group))
        for first, last in launches if forwards else reversed(launches):
            arrived = torch.zeros(groups, dtype=torch.int32, device=device)
            kernel[(owners, groups)](
                *tensors, arrived, first, last, first_lane, *numbers, **constants,
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


def fits(units: int, device: torch.device) -> bool:
    """Whether a layer of that size fits on the device."""
    return units <= LARGEST and triton.cdiv(units, OWNED) <= _programs(device)


def _padded(values: Tensor, *missing: int, gates: bool = False) -> Tensor:
    """With so many zeros more in the last dimensions, the last first; with `gates`, the first
    dimension has four parts, and each gets as many. Contiguous."""
    if not any(missing):
        return values.contiguous()
    if gates:
        return _padded(values.unflatten(0, (4, -1)), *missing).flatten(0, 1)
    return F.pad(values, [each for number in missing for each in (0, number)])


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
        more, more_inputs = -units % ALIGNED, -inputs % ALIGNED
        inputs_MI = _padded(inputs_TBI.reshape(-1, inputs), more_inputs)
        input_4HI = _padded(input_4HI, more_inputs, more, gates=True)
        hidden_4HH = _padded(hidden_4HH, more, more, gates=True)
        bias_4H = _padded(bias_4H, more, gates=True)
        gates_MG = torch.addmm(bias_4H, inputs_MI, input_4HI.t())
        hiddens = inputs_TBI.new_empty(steps + 1, lanes, units + more)
        cells = torch.empty_like(hiddens, dtype=torch.float32)
        hiddens[0], cells[0] = _padded(hidden_BH, more), _padded(cell_BH, more)
        numbers = (lanes, units + more)
        _run(_forward_kernel, gates_MG, hidden_4HH, hiddens, cells, steps=steps, numbers=numbers)
        ctx.save_for_backward(inputs_MI, input_4HI, hidden_4HH, gates_MG, hiddens, cells)
        ctx.more = more, more_inputs
        outputs_TBH = hiddens[1:, :, :units].contiguous() if more else hiddens[1:]
        return outputs_TBH, hiddens[-1, :, :units], cells[-1, :, :units].to(cell_BH.dtype)

    @staticmethod
    def backward(
        ctx: Any, to_outputs_TBH: Tensor, to_hidden_BH: Tensor, to_cell_BH: Tensor
    ) -> tuple[Tensor, ...]:
        inputs_MI, input_4HI, hidden_4HH, gates_MG, hiddens, cells = ctx.saved_tensors
        (more, more_inputs), (steps, lanes, units) = ctx.more, to_outputs_TBH.shape
        inputs = inputs_MI.shape[1] - more_inputs
        to_hiddens = _padded(to_outputs_TBH, more)
        if to_hiddens.data_ptr() == to_outputs_TBH.data_ptr():
            to_hiddens = to_hiddens.clone()
        to_hiddens[-1, :, :units] += to_hidden_BH
        to_cell = _padded(to_cell_BH.to(torch.float32, copy=True), more)
        to_gates_MG = torch.empty_like(gates_MG)
        _run(
            _backward_kernel, gates_MG, hidden_4HH, cells, to_hiddens, to_cell, to_gates_MG,
            steps=steps, numbers=(steps, lanes, units + more),
        )  # fmt: skip
        transposed_GM = to_gates_MG.t()

        def of_gates(padded: Tensor) -> Tensor:
            return padded.unflatten(0, (4, -1))[:, :units].flatten(0, 1)

        return (
            (to_gates_MG @ input_4HI)[:, :inputs].unflatten(0, (steps, lanes)),
            (to_gates_MG[:lanes] @ hidden_4HH)[:, :units],
            to_cell[:, :units].to(to_cell_BH.dtype),
            of_gates(transposed_GM @ inputs_MI)[:, :inputs],
            of_gates(transposed_GM @ hiddens[:-1].flatten(0, 1))[:, :units],
            of_gates(to_gates_MG.sum(dim=0, dtype=torch.float32).to(to_gates_MG.dtype)),
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
    gates = 4 * steps * lanes * (units + -units % ALIGNED)
    return gates < 2**31 and fits(units, inputs_TBI.device)


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
