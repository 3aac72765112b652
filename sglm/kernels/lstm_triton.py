"""An LSTM layer as two persistent Triton kernels, which run from the first step to the last.

A library's LSTM reads the recurrent matrix from memory at every step. Here each program computes a
few units for a group of lanes, and keeps their rows of that matrix in its multiprocessor for the
whole window (as in Diamos et al. 2016, "Persistent RNNs"). Between steps the programs of a group
exchange the hidden state (in the backward pass: the gates' gradients) through memory, and wait for
each other. So all programs of a launch must run at the same time: there can be no more of them than
multiprocessors, and groups of lanes for which there is no room run in later launches. The products
that do not depend on the previous step (of the inputs, and for the weights' gradients) are computed
outside the kernels, as one matrix product each.

Rows are padded with zeros to a multiple of `ALIGNED` units, so that 16 bytes are read at once.
Sums, cells and gradients within the layer are float32; the factors of products have the type of the
inputs.

Shapes: T time, B lanes, I inputs, H units, M = T·B, G = 4H gates. I and H are padded inside.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from sglm.kernels.choice import HALF_DTYPES, suitable
from sglm.kernels.lstm import LSTMWeights
from sglm.kernels.lstm_triton_programs import OWNED, WARPS, backward_kernel, forward_kernel

LARGEST = 1152  # units: with more the compiler runs out of registers
ALIGNED = 16
# Lanes that do not fit onto the GPU at once are computed in groups, one launch after another. If
# this takes more launches, the layer is left to cuDNN, which computes all lanes at once and took as
# long as three launches (80 lanes of 1,150 units, an earlier kernel at half of this one's speed).
MAX_LAUNCHES = 3
# The number of values of a block that each warp sums, and the number of blocks that are loaded
# ahead. With more of either the compiler runs out of registers.
FORWARD, BACKWARD = (16, 9), (64, 3)


def _split(lanes: int, units: int, programs: int) -> tuple[int, int, int]:
    """Returns the numbers of programs of a group, of its lanes, and of groups of a launch, such
    that all programs of a launch can run at once. With more lanes in a group the compiler runs out
    of registers.
    """
    owners = triton.cdiv(units, OWNED)
    at_once = max(1, programs // owners)
    group = 16 if triton.cdiv(lanes, 16) <= at_once else 32
    return owners, group, min(at_once, triton.cdiv(lanes, group))


def _blocks(summed: int, part: int) -> int:
    """Returns the number of blocks in which a sum over `summed` numbers is computed."""
    blocks: int = triton.cdiv(summed, WARPS * part)
    return blocks


def _constants(group: int, *, part: int, ahead: int, summed: int) -> dict[str, int]:
    """Returns a kernel's constants, for products that sum over `summed` numbers."""
    blocks = _blocks(summed, part)
    constants = {"LANES": group, "OWNED": OWNED, "SPLIT": WARPS, "PART": part, "BLOCKS": blocks}
    return constants | {"AHEAD": min(ahead, blocks)}


def _run(kernel: Any, *tensors: Tensor, steps: int, numbers: tuple[int, ...]) -> None:
    """Runs a kernel over all steps and lanes.

    Args:
        kernel: `forward_kernel` or `backward_kernel`.
        tensors: Its pointer arguments.
        steps: T.
        numbers: Its last integer arguments, which end with B and H.
    """
    lanes, units = numbers[-2:]
    device, forwards = tensors[0].device, kernel is forward_kernel
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
    """Returns whether programs run one after the other, as they do under the interpreter."""
    return bool(triton.knobs.runtime.interpret)


def _programs(device: torch.device) -> int:
    """Returns the number of programs that can run at once."""
    if device.type != "cuda":  # under the interpreter
        return 128
    return torch.cuda.get_device_properties(device).multi_processor_count


def _shared_bytes(units: int) -> int:
    """Returns the most bytes that a program needs of its multiprocessor's memory: its rows of the
    recurrent matrix, in whole blocks, and its warps' sums for 32 lanes."""
    forward, backward = (
        _blocks(summed, part) * WARPS * part * columns
        for summed, part, columns in (
            (units, FORWARD[0], 4 * OWNED),
            (4 * units, BACKWARD[0], OWNED),
        )
    )
    return 2 * max(forward, backward) + 4 * WARPS * 32 * 4 * OWNED


def fits(lanes: int, units: int, device: torch.device) -> bool:
    """Returns whether a layer of that size fits on the device, and its lanes into few launches."""
    owners, group, at_once = _split(lanes, units, _programs(device))
    if units > LARGEST or owners > _programs(device) or lanes > MAX_LAUNCHES * group * at_once:
        return False
    if device.type != "cuda":
        return True
    of: Any = torch.cuda.get_device_properties(device)
    there = getattr(of, "shared_memory_per_block_optin", of.shared_memory_per_block)
    return _shared_bytes(units + -units % ALIGNED) <= int(there)


def _padded(values: Tensor, *padding: int, gates: bool = False) -> Tensor:
    """Returns the values padded with `padding` zeros in the last dimensions, last one first. With
    `gates`, the first dimension has four parts, each of which is padded. Contiguous."""
    if not any(padding):
        return values.contiguous()
    if gates:
        return _padded(values.unflatten(0, (4, -1)), *padding).flatten(0, 1)
    return F.pad(values, [each for number in padding for each in (0, number)])


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
        _run(forward_kernel, gates_MG, hidden_4HH, hiddens, cells, steps=steps, numbers=numbers)
        ctx.save_for_backward(inputs_MI, input_4HI, hidden_4HH, gates_MG, hiddens, cells)
        ctx.more = more, more_inputs
        outputs_TBH = hiddens[1:, :, :units].contiguous() if more else hiddens[1:]
        return outputs_TBH, hiddens[-1, :, :units], cells[-1, :, :units].to(cell_BH.dtype)

    @staticmethod
    @once_differentiable
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
            backward_kernel, gates_MG, hidden_4HH, cells, to_hiddens, to_cell, to_gates_MG,
            steps=steps, numbers=(steps, lanes, units + more),
        )  # fmt: skip
        transposed_GM = to_gates_MG.t()

        def of_gates(padded: Tensor) -> Tensor:
            own: Tensor = padded.unflatten(0, (4, -1))[:, :units].flatten(0, 1)
            return own

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
    """Returns whether the kernels support this: a half type, and a size that `fits`.

    In float32 the recurrent matrix of a large layer would not fit.
    """
    if not suitable(inputs_TBI, hidden_BH, cell_BH, *weights, dtypes=HALF_DTYPES):
        return False
    steps, (lanes, units) = len(inputs_TBI), hidden_BH.shape
    gates = 4 * steps * lanes * (units + -units % ALIGNED)
    return gates < 2**31 and fits(lanes, units, inputs_TBI.device)


def lstm_layer(
    inputs_TBI: Tensor,
    hidden_BH: Tensor,
    cell_BH: Tensor,
    *,
    weights: LSTMWeights,
    training: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `sglm.kernels.lstm.lstm_layer`, only where `can_run` holds; differentiable whether
    `training` or not."""
    outputs_TBH, hidden_BH, cell_BH = _Layer.apply(inputs_TBI, hidden_BH, cell_BH, *weights[:3])
    return outputs_TBH, hidden_BH, cell_BH
