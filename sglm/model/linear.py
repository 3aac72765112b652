"""Large matrix products without a gradient, at the speed the CPU has.

Shapes: N rows, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# oneDNN makes a kernel for every number of rows and keeps it: about 2 ms and half a megabyte each.
# Only multiples of this go there, so that there are few.
ROWS_STEP = 32
# Multiply-adds below which finding the kernel costs more than it saves.
WORTHWHILE_PRODUCTS = 2**20


def linear(values_NI: Tensor, weight_OI: Tensor, bias_O: Tensor) -> Tensor:
    """`F.linear`; where no gradient is wanted, multiples of `ROWS_STEP` rows go through oneDNN.

    torch sends float32 products on CPUs to MKL, which on other makers' processors takes twice the
    time of oneDNN (measured at 2×256, 7,300 words; scripts/bench_scoring.py measures both). torch
    offers oneDNN's product only as this operator, made for its compiler; without it all works
    the same.
    """
    if not _onednn_pays(values_NI, weight_OI):
        return F.linear(values_NI, weight_OI, bias_O)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(
        values_NI, weight_OI, bias_O, "none", [], ""
    )
    return product


def _onednn_pays(values_NI: Tensor, weight_OI: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and values_NI.dim() == 2
        and values_NI.dtype == weight_OI.dtype == torch.float32
        and values_NI.device.type == "cpu"
        and len(values_NI) % ROWS_STEP == 0
        and len(values_NI) * weight_OI.numel() >= WORTHWHILE_PRODUCTS
        and _has_onednn()
    )


def _has_onednn() -> bool:
    return (
        bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
