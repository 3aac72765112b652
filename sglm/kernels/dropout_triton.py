"""Locked dropout with the activation penalties as two Triton kernels, forward and backward.

The mask is drawn by torch and only applied here, so that a run resumes exactly.

Shapes: T time, B lanes, H features of the last layer, C columns (lane and feature together).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from sglm.kernels.choice import HALF_DTYPES, suitable

COLUMNS = 256  # columns of a program
STEPS = 8  # steps of a program; those before and after them are read from the cache


@triton.jit
def _tile(
    outputs_ptr, mask_ptr, steps, columns, STEPS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Loads a program's outputs, S steps by C columns; computes features and steps' changes."""
    column_1C = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    step_S1 = (tl.program_id(1) * STEPS + tl.arange(0, STEPS))[:, None]
    there_SC = (step_S1 < steps) & (column_1C < columns)
    offset_SC = step_S1 * columns + column_1C
    output_SC = tl.load(outputs_ptr + offset_SC, mask=there_SC, other=0.0).to(tl.float32)
    mask_1C = tl.load(mask_ptr + column_1C, mask=column_1C < columns, other=0.0).to(tl.float32)
    has_before_SC = there_SC & (step_S1 > 0)
    before_SC = tl.load(outputs_ptr + offset_SC - columns, mask=has_before_SC, other=0.0)
    change_before_SC = tl.where(has_before_SC, output_SC - before_SC.to(tl.float32), 0.0)
    # Rounded to the stored type, because the penalty is defined on the stored number.
    feature_SC = (output_SC * mask_1C).to(outputs_ptr.dtype.element_ty)
    return step_S1, offset_SC, there_SC, output_SC, change_before_SC, feature_SC, mask_1C


@triton.jit
def _forward_kernel(
    outputs_ptr, mask_ptr, features_ptr, partial_ptr, steps, columns, activation, temporal,
    STEPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    _, offset_SC, there_SC, _, change_before_SC, feature_SC, _ = _tile(
        outputs_ptr, mask_ptr, steps, columns, STEPS, COLUMNS
    )
    tl.store(features_ptr + offset_SC, feature_SC, mask=there_SC)
    feature_SC = feature_SC.to(tl.float32)
    penalty_SC = (
        activation * feature_SC * feature_SC + temporal * change_before_SC * change_before_SC
    )
    penalty = tl.sum(tl.sum(penalty_SC, axis=0), axis=0)
    tl.store(partial_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), penalty)


@triton.jit
def _backward_kernel(
    outputs_ptr, mask_ptr, features_gradient_ptr, penalty_gradient_ptr, outputs_gradient_ptr,
    steps, columns, activation, temporal, STEPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    step_S1, offset_SC, there_SC, output_SC, change_before_SC, feature_SC, mask_1C = _tile(
        outputs_ptr, mask_ptr, steps, columns, STEPS, COLUMNS
    )
    has_after_SC = there_SC & (step_S1 + 1 < steps)
    after_SC = tl.load(outputs_ptr + offset_SC + columns, mask=has_after_SC, other=0.0)
    change_after_SC = tl.where(has_after_SC, after_SC.to(tl.float32) - output_SC, 0.0)
    of_penalty = 2 * tl.load(penalty_gradient_ptr)
    gradient_SC = tl.load(features_gradient_ptr + offset_SC, mask=there_SC, other=0.0)
    gradient_SC = gradient_SC.to(tl.float32)
    gradient_SC += of_penalty * activation * feature_SC.to(tl.float32)
    gradient_SC = gradient_SC * mask_1C + of_penalty * temporal * (
        change_before_SC - change_after_SC
    )
    out_type = outputs_gradient_ptr.dtype.element_ty
    tl.store(outputs_gradient_ptr + offset_SC, gradient_SC.to(out_type), mask=there_SC)


class _RegularizedDropout(torch.autograd.Function):
    """The two kernels as a function, differentiable with respect to the outputs."""

    @staticmethod
    def forward(
        ctx: Any, outputs_TBH: Tensor, mask_BH: Tensor, activation: float, temporal: float
    ) -> tuple[Tensor, Tensor]:
        steps, columns = outputs_TBH.shape[0], mask_BH.numel()
        features_TBH = torch.empty_like(outputs_TBH)
        grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(steps, STEPS))
        # Each program writes its own element, so that the order of summation is fixed.
        partial = torch.empty(grid, dtype=torch.float32, device=outputs_TBH.device)
        _forward_kernel[grid](
            outputs_TBH, mask_BH, features_TBH, partial, steps, columns, activation, temporal,
            STEPS=STEPS, COLUMNS=COLUMNS,
        )  # fmt: skip
        ctx.save_for_backward(outputs_TBH, mask_BH)
        ctx.weights = activation, temporal
        return features_TBH, partial.sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, features_gradient_TBH: Tensor, penalty_gradient: Tensor
    ) -> tuple[Tensor, None, None, None]:
        outputs_TBH, mask_BH = ctx.saved_tensors
        steps, columns = outputs_TBH.shape[0], mask_BH.numel()
        outputs_gradient_TBH = torch.empty_like(outputs_TBH)
        grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(steps, STEPS))
        _backward_kernel[grid](
            outputs_TBH, mask_BH, features_gradient_TBH.contiguous(), penalty_gradient,
            outputs_gradient_TBH, steps, columns, *ctx.weights, STEPS=STEPS, COLUMNS=COLUMNS,
        )  # fmt: skip
        return outputs_gradient_TBH, None, None, None


def can_run(
    outputs_TBH: Tensor, mask_BH: Tensor | None, *, activation: float, temporal: float
) -> bool:
    """Returns whether the kernels support this: float32 or a half type, with a mask and a penalty.

    If either is missing, there is little to fuse.
    """
    if mask_BH is None or not (activation or temporal):
        return False
    return suitable(outputs_TBH, mask_BH, dtypes=(torch.float32, *HALF_DTYPES))


def regularized_dropout(
    outputs_TBH: Tensor, mask_BH: Tensor | None, *, activation: float, temporal: float
) -> tuple[Tensor, Tensor]:
    """Computes `sglm.kernels.dropout.regularized_dropout`; only where `can_run` holds."""
    assert mask_BH is not None
    steps, columns = outputs_TBH.shape[0], mask_BH.numel()
    features_TBH, penalty = _RegularizedDropout.apply(
        outputs_TBH.contiguous(),
        mask_BH.contiguous(),
        activation / (steps * columns),
        temporal / (max(steps - 1, 1) * columns),
    )
    return features_TBH, penalty
