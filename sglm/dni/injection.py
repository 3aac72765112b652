"""The synthetic gradient that is injected at a boundary: equation (7) of docs/algorithm.md.

In plain PyTorch: the reference of `injection_triton`. Shapes: B lanes, S coordinates of a lane's
state.
"""

import math

import torch
from torch import Tensor

SMALLEST = 1e-12  # keeps the scale of a zero gradient finite


@torch.no_grad()
def injected_gradient(
    predicted_BS: Tensor, *, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Scales and bounds a predicted state gradient.

    Per lane: ŝ = unit·predicted, shortened to at most `longest`, times `factor`; zero where one of
    its numbers is not finite.

    Args:
        predicted_BS: the synthesizer's prediction, in its own unit.
        unit, longest, factor: scalars on the same device, so that nobody waits for them;
            `longest` is None where nothing is cut.

    Returns:
        `(gradient_BS, kept_B1)`: what is injected, and the share of its length that each lane kept.
    """
    lengths_B1 = torch.linalg.vector_norm(predicted_BS, dim=1, keepdim=True) * unit
    if longest is None:
        kept_B1 = torch.ones_like(lengths_B1)
    else:
        kept_B1 = (longest / lengths_B1.clamp_min(SMALLEST)).clamp_max(1.0)
    gradient_BS = predicted_BS * (kept_B1 * (unit * factor))
    # A comparison with NaN is false.
    return gradient_BS.where(lengths_B1 < math.inf, 0.0), kept_B1
