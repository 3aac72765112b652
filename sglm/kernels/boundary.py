"""What is injected at a boundary, in plain PyTorch: the reference of `boundary_triton`.

Shapes: B lanes, S coordinates of a lane's state.
"""

import torch
from torch import Tensor

SMALLEST = 1e-12  # keeps the scale of a zero gradient finite


@torch.no_grad()
def injected_gradient(
    said_BS: Tensor, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Scales and bounds a predicted state gradient.

    Per lane: ŝ = unit·said, shortened to at most `longest`, times `factor`; zero where one of its
    numbers is not finite.

    Args:
        said_BS: what the synthesizer says, in its own unit.
        unit, longest, factor: scalars on the same device, so that nobody waits for them;
            `longest` is None where nothing is cut.

    Returns:
        `(gradient_BS, capped)`: what is injected, and which share of the lanes was cut short.
    """
    lengths_B1 = torch.linalg.vector_norm(said_BS, dim=1, keepdim=True) * unit
    scale_B1 = unit * factor
    capped = torch.zeros((), device=said_BS.device)
    if longest is not None:
        share_B1 = (longest / lengths_B1.clamp_min(SMALLEST)).clamp_max(1.0)
        capped = (share_B1 < 1).float().mean()
        scale_B1 = share_B1 * scale_B1
    finite_B1 = torch.isfinite(lengths_B1)
    return (said_BS * scale_B1).where(finite_B1, 0.0), capped
