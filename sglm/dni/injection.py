"""What is injected at a boundary: the prediction in its unit, bounded, times the factor.

Equation (7) of docs/algorithm.md and the factor of (8); `injection_triton` has a kernel for a GPU.
Shapes: B lanes, S coordinates of a lane's state.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sglm.dni.trust import Trust
from sglm.kernels.choice import chosen
from sglm.runtime.ranks import ALONE, Ranks

SMALLEST = 1e-12  # keeps the scale of a zero gradient finite
_CAPPED_MEAN_OVER = 20  # injections


@torch.no_grad()
def injected_gradient(
    predicted_BS: Tensor, *, unit: Tensor, longest: Tensor | None, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Scales and bounds a predicted state gradient.

    Per lane: ŝ = unit·predicted, shortened to at most `longest`, times `factor`; zero where one of
    its numbers is not finite.

    Args:
        predicted_BS: by the synthesizer, in its own unit.
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


class Injection:
    """From a synthesizer's predictions to injected gradients.

    Args:
        trust: the unit, the bound and the calibrated factor come from it.
        factor: what multiplies predictions; None: the calibrated one (`Trust.factor`).
        bounded: cap each lane's gradient (`Trust.longest`), without which bootstrapped targets can
            feed on themselves.
        noise: inject random directions of the prediction's length, drawn from here (a control).
        ranks: the processes that share the lanes.

    Attributes:
        capped: running mean of the share of lanes that the bound has shortened.
    """

    def __init__(
        self,
        trust: Trust,
        *,
        factor: float | None,
        bounded: bool = True,
        noise: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        device = trust.unit.device
        self.trust = trust
        self.fixed_factor = None if factor is None else torch.full((), factor, device=device)
        self.bounded = bounded
        self.noise = noise
        self.ranks = ranks
        self.capped = torch.zeros((), device=device)
        self._one = torch.ones((), device=device)
        self._injected_gradient = chosen(injected_gradient)

    @property
    def factor(self) -> Tensor:
        """What multiplies the prediction: the given number, or the calibrated one."""
        return self.trust.factor if self.fixed_factor is None else self.fixed_factor

    @property
    def longest(self) -> Tensor | None:
        """The largest norm that a lane's gradient may have; None without a bound."""
        return self.trust.longest if self.bounded else None

    @torch.no_grad()
    def inject(self, predicted_BS: Tensor) -> Tensor:
        """What is injected: factor·ŝ, bounded; or noise of that length. `(B, S)`.

        Args:
            predicted_BS: by the synthesizer, in its own unit. One that has diverged injects
                nothing, and the model goes on.
        """
        gradient_BS, kept_B1 = self._injected_gradient(
            predicted_BS, unit=self.trust.unit, longest=self.longest, factor=self.factor
        )
        if self.bounded:
            self.capped.lerp_((kept_B1 < 1).float().mean(), 1 / _CAPPED_MEAN_OVER)
        return gradient_BS if self.noise is None else self._noise_like(gradient_BS)

    def bound(self, predicted_MS: Tensor) -> Tensor:
        """A prediction in nats as it would be injected with factor 1."""
        bounded_MS, _ = self._injected_gradient(
            predicted_MS, unit=self._one, longest=self.longest, factor=self._one
        )
        return bounded_MS

    def _noise_like(self, gradient_BS: Tensor) -> Tensor:
        """Random directions, each as long as its lane's gradient; drawn for all ranks' lanes."""
        lanes, size = gradient_BS.shape
        random_BS = self.ranks.own(
            torch.randn(
                lanes * self.ranks.count, size, generator=self.noise, device=gradient_BS.device
            )
        )
        lengths_B1 = gradient_BS.norm(dim=1, keepdim=True)
        noise_BS: Tensor = random_BS * (lengths_B1 / random_BS.norm(dim=1, keepdim=True))
        return noise_BS

    def state_dict(self) -> dict[str, Any]:
        """Everything here that steps change; to be called by all ranks."""
        self.ranks.average([self.capped])
        return {
            "capped": self.capped,
            "noise": None if self.noise is None else self.noise.get_state(),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave; noise that was drawn on another kind of device begins
        anew, for its generator's state means nothing here."""
        self.capped.copy_(tree["capped"])
        if self.noise is not None and self.noise.get_state().shape == tree["noise"].shape:
            self.noise.set_state(tree["noise"])
