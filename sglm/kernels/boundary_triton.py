"""The boundary term as one Triton kernel: each lane is read once and held in registers.

Shapes: B lanes, S coordinates of a lane's state.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglm.kernels.boundary import SMALLEST, BoundaryTerm

LARGEST = 16384  # coordinates of a lane: two arrays of 64 numbers a thread


@triton.jit
def _forward_kernel(
    said_ptr, state_ptr, unit_ptr, longest_ptr, factor_ptr, gradient_ptr, lanes_ptr, lanes, size,
    CAPPED: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    lane = tl.program_id(0)
    offset = tl.arange(0, BLOCK)
    there = offset < size
    gradient = tl.load(said_ptr + lane * size + offset, mask=there, other=0.0) * tl.load(unit_ptr)
    # A comparison with NaN is false.
    gradient = tl.where(tl.abs(gradient) < float("inf"), gradient, 0.0)
    scale = 1.0
    if CAPPED:
        length = tl.maximum(tl.sqrt(tl.sum(gradient * gradient, axis=0)), SMALLEST)
        scale = tl.minimum(tl.load(longest_ptr) / length, 1.0)
    gradient = gradient * scale * tl.load(factor_ptr)
    tl.store(gradient_ptr + lane * size + offset, gradient, mask=there)
    state = tl.load(state_ptr + lane * size + offset, mask=there, other=0.0)
    tl.store(lanes_ptr + lane, tl.sum(state * gradient, axis=0))
    tl.store(lanes_ptr + lanes + lane, tl.where(scale < 1, 1.0, 0.0))


class _Boundary(torch.autograd.Function):
    """⟨s, what is injected⟩, differentiable in s."""

    @staticmethod
    def forward(
        ctx: Any,
        state_BS: Tensor,
        said_BS: Tensor,
        unit: Tensor,
        longest: Tensor | None,
        factor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        lanes, size = said_BS.shape
        gradient_BS = torch.empty_like(said_BS)
        lanes_2B = said_BS.new_empty(2, lanes)
        block = triton.next_power_of_2(size)
        _forward_kernel[(lanes,)](
            said_BS, state_BS, unit, factor if longest is None else longest, factor, gradient_BS,
            lanes_2B, lanes, size,
            CAPPED=longest is not None, SMALLEST=SMALLEST, BLOCK=block,
            num_warps=min(max(block // 1024, 1), 8),
        )  # fmt: skip
        ctx.save_for_backward(gradient_BS)
        # Each lane has a place of its own, so that the sum's order is always the same.
        inner, capped = lanes_2B[0].sum(), lanes_2B[1].mean()
        ctx.mark_non_differentiable(gradient_BS, capped)
        return inner, gradient_BS, capped

    @staticmethod
    def backward(
        ctx: Any, inner_gradient: Tensor, *_: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        (gradient_BS,) = ctx.saved_tensors
        return inner_gradient * gradient_BS, None, None, None, None


def boundary_term(
    said_BS: Tensor, state_BS: Tensor, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> BoundaryTerm:
    """As `sglm.kernels.boundary.boundary_term`, in float32, for at most `LARGEST` coordinates."""
    found = _Boundary.apply(state_BS.contiguous(), said_BS.contiguous(), unit, longest, factor)
    return BoundaryTerm(*found)
