"""The injected gradient as one Triton kernel: each lane is read once and held in registers.

Shapes: B lanes, S coordinates of a lane's state.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglm.dni.injection import SMALLEST
from sglm.kernels.choice import suitable

LARGEST = 16384  # coordinates of a lane: 64 numbers per thread


@triton.jit
def _injected_kernel(
    predicted_ptr, unit_ptr, longest_ptr, factor_ptr, gradient_ptr, kept_ptr, size,
    CAPPED: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    there = offset < size
    unit = tl.load(unit_ptr)
    predicted = tl.load(predicted_ptr + lane * size + offset, mask=there, other=0.0)
    length = tl.sqrt(tl.sum(predicted * predicted, axis=0)) * unit
    finite = length < float("inf")  # a comparison with NaN is false
    length = tl.where(finite, length, 1.0)
    kept = 1.0
    if CAPPED:
        kept = tl.minimum(tl.load(longest_ptr) / tl.maximum(length, SMALLEST), 1.0)
    gradient = tl.where(finite, predicted, 0.0) * (kept * (unit * tl.load(factor_ptr)))
    tl.store(gradient_ptr + lane * size + offset, gradient, mask=there)
    tl.store(kept_ptr + lane, kept)


def can_run(predicted_BS: Tensor, *, unit: Tensor, longest: Tensor | None, factor: Tensor) -> bool:
    """Returns whether the kernel supports this: float32 on a GPU, at most `LARGEST` coordinates."""
    scalars = (unit, factor) if longest is None else (unit, factor, longest)
    return suitable(predicted_BS, *scalars) and predicted_BS.shape[1] <= LARGEST


@torch.no_grad()
def injected_gradient(
    predicted_BS: Tensor, *, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Computes `sglm.dni.injection.injected_gradient`; only where `can_run` holds."""
    lanes, size = predicted_BS.shape
    gradient_BS = torch.empty(lanes, size, device=predicted_BS.device)
    kept_B1 = predicted_BS.new_empty(lanes, 1)
    block = triton.next_power_of_2(size)
    _injected_kernel[(lanes,)](
        predicted_BS.contiguous(), unit, factor if longest is None else longest, factor,
        gradient_BS, kept_B1, size,
        CAPPED=longest is not None, SMALLEST=SMALLEST, BLOCK=block,
        num_warps=min(max(block // 1024, 1), 8),
    )  # fmt: skip
    return gradient_BS, kept_B1
