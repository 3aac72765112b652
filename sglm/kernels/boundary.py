"""The boundary term in plain PyTorch: the reference of `boundary_triton`.

Shapes: B lanes, S coordinates of a lane's state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-12  # keeps the scale of a zero gradient finite


class BoundaryTerm(NamedTuple):
    """What is injected, and how.

    Attributes:
        inner: ⟨s, what is injected⟩ summed over lanes: a scalar, differentiable in the state.
        gradient_BS: what is injected, detached.
        capped: share of the lanes that the cap cut short: a scalar, detached.
    """

    inner: Tensor
    gradient_BS: Tensor
    capped: Tensor


def boundary_term(
    said_BS: Tensor, state_BS: Tensor, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> BoundaryTerm:
    """Scales and bounds a predicted state gradient, and puts it where backpropagation meets it.

    Per lane: ŝ = unit·said, zero where that is not finite; shortened to at most `longest`; times
    `factor`.

    Args:
        said_BS: what the synthesizer says, in its own unit.
        state_BS: the outgoing state, with its graph.
        unit, longest, factor: scalars on the same device, so that nobody waits for them;
            `longest` is None where nothing is cut.
    """
    with torch.no_grad():
        gradient_BS = (said_BS * unit).nan_to_num(0.0, 0.0, 0.0)
        capped = torch.zeros((), device=said_BS.device)
        if longest is not None:
            lengths_B1 = gradient_BS.norm(dim=1, keepdim=True).clamp_min(SMALLEST)
            scale_B1 = (longest / lengths_B1).clamp_max(1.0)
            gradient_BS = gradient_BS * scale_B1
            capped = (scale_B1 < 1).float().mean()
        gradient_BS = gradient_BS * factor
    return BoundaryTerm((state_BS * gradient_BS).sum(), gradient_BS, capped)
