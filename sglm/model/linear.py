"""Large matrix products, by the library that is fastest on the CPU.

Shapes: N rows, I inputs, O outputs; R rows, K summed over, C columns.
"""

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# oneDNN builds a kernel for every number of rows and keeps it: about 2 ms and half a megabyte each.
# If the number of rows varies, only multiples of this go to oneDNN, so that it keeps few kernels.
ROWS_STEP = 32
# Multiply-adds below which finding the kernel costs more than it saves.
WORTHWHILE_PRODUCTS = 2**20
FEWEST_ROWS = 64  # with fewer, oneDNN takes longer to lay out the weights than to multiply


def linear(values_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """Computes `F.linear`; without gradients, multiples of `ROWS_STEP` rows go through `matmul`."""
    if torch.is_grad_enabled() or values_NI.dim() != 2 or len(values_NI) % ROWS_STEP:
        return F.linear(values_NI, weight_OI, bias_O)
    return matmul(values_NI, weight_OI.t(), bias_O)


def repeated_linear(weight_OI: Tensor, bias_O: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """Returns `linear` with fixed weights, for many successive products; not differentiable.

    oneDNN lays the weights out once instead of for every product, which saves 6 % of the time at
    416 rows of 256 numbers and 10,000 outputs.

    Args:
        weight_OI, bias_O: As in `linear`.
        rows: Number of rows in most products, a multiple of `ROWS_STEP`.
    """
    if not onednn_is_better() or not _can_reorder(weight_OI):
        return lambda values_NI: linear(values_NI, weight_OI, bias_O)
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight_OI, rows)

    def product(values_NI: Tensor) -> Tensor:
        count = len(values_NI)
        if count % ROWS_STEP:
            values_NI = F.pad(values_NI, (0, 0, 0, -count % ROWS_STEP))
        out_NO: Tensor = torch.ops.mkldnn._linear_pointwise(
            values_NI, laid_out, bias_O, "none", [], ""
        )
        return out_NO[:count]

    return product


def _can_reorder(weight: Tensor) -> bool:
    plain = weight.dtype == torch.float32 and weight.device.type == "cpu"
    return plain and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class Linear(nn.Linear):
    """An `nn.Linear` whose products go through `matmul`, those of the backward pass included.

    It is for inputs of few different sizes (see `ROWS_STEP`), and has first derivatives only.
    """

    def forward(self, values: Tensor) -> Tensor:
        rows_NI = values.reshape(-1, self.in_features)
        if len(rows_NI) < FEWEST_ROWS or not onednn_pays(rows_NI, self.weight.t()):
            return super().forward(values)
        apply: Any = _Linear.apply  # torch has no types for it
        out_NO: Tensor = apply(rows_NI, self.weight, self.bias)
        return out_NO.view(*values.shape[:-1], self.out_features)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(values_NI, weight_OI)
        return matmul(values_NI, weight_OI.t(), bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_out_NO: Tensor) -> tuple[Tensor | None, ...]:
        values_NI, weight_OI = ctx.saved_tensors
        values, weight, bias = ctx.needs_input_grad
        return (
            matmul(to_out_NO, weight_OI) if values else None,
            matmul(to_out_NO.t(), values_NI) if weight else None,
            to_out_NO.sum(dim=0) if bias else None,
        )


def matmul(
    left_RK: Tensor,
    right_KC: Tensor,
    bias_C: Tensor | None = None,
    *,
    out_RC: Tensor | None = None,
) -> Tensor:
    """Computes left · right + bias, through oneDNN if that pays; not differentiable.

    Either factor may be a transposed view. The result is written to `out_RC` if one is given,
    except by oneDNN, which allocates its own.
    """
    if onednn_pays(left_RK, right_KC):
        return onednn_matmul(left_RK, right_KC, bias_C)
    if bias_C is None:
        return torch.mm(left_RK, right_KC, out=out_RC)
    if left_RK.device.type == "cpu" and left_RK.dtype == torch.float32:
        # For these, `addmm` first writes the bias into every row, then adds the product.
        return torch.mm(left_RK, right_KC, out=out_RC).add_(bias_C)
    return torch.addmm(bias_C, left_RK, right_KC, out=out_RC)


def onednn_matmul(left_RK: Tensor, right_KC: Tensor, bias_C: Tensor | None = None) -> Tensor:
    """Computes the same by oneDNN, for float32 on a CPU; only where `has_onednn` holds.

    torch offers this product only as an internal operator of its compiler.
    """
    if bias_C is not None:
        bias_C = bias_C.contiguous()  # the operator ignores strides here
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        left_RK, right_KC.t(), bias_C, "none", [], ""
    )
    return product


def onednn_pays(left_RK: Tensor, right_KC: Tensor) -> bool:
    """Returns whether `matmul` sends this product to oneDNN."""
    return (
        left_RK.dtype == right_KC.dtype == torch.float32
        and left_RK.device.type == "cpu"
        and len(left_RK) * right_KC.numel() >= WORTHWHILE_PRODUCTS
        and onednn_is_better()
    )


def onednn_is_better() -> bool:
    """Returns whether large float32 products are better left to oneDNN on this machine."""
    return not mkl_on_intel() and has_onednn()


@cache
def mkl_on_intel() -> bool:
    """Returns whether torch's float32 products go to MKL, on a processor of the same maker (Intel).

    There MKL is as fast as oneDNN, or up to three times faster; on other makers' processors it
    takes twice oneDNN's time (docs/log.md). The maker's name decides, and not a trial, because
    repeated runs must compute products in the same way, or their last digits would differ.
    """
    return bool(torch.backends.mkl.is_available()) and "GenuineIntel" in _cpu_description()  # type: ignore[no-untyped-call]


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Returns whether products of bfloat16 are faster than those of float32 on this CPU.

    They are with AMX, which Intel's server CPUs have from Sapphire Rapids on. On other CPUs they
    can be many times slower.
    """
    return has_onednn() and "amx_bf16" in _cpu_description()


@cache
def cpu_has_bfloat16() -> bool:
    """Returns whether the CPU has instructions for products of bfloat16, of AMX or AVX-512. With
    AVX-512, reading is faster than in float32, but training may not be."""
    return has_onednn() and any(name in _cpu_description() for name in ("amx_bf16", "avx512_bf16"))


def _cpu_description() -> str:
    """Returns the processor's maker and features as the system states them."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:  # not Linux
        return platform.processor()


def has_onednn() -> bool:
    """Returns whether this build of torch has oneDNN's operator for products, and may use it."""
    return (
        bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
