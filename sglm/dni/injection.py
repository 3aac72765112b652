"""The gradient injected at a boundary: the prediction in its unit, bounded, times the factor.

Equation (7) of docs/algorithm.md and the factor of (8); `injection_triton` has a GPU kernel.
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

    For each lane, ŝ = unit·predicted is shortened to at most `longest` and multiplied by `factor`.
    The result is zero if the length of ŝ is not finite.

    Args:
        predicted_BS: The synthesizer's prediction, in its own unit.
        unit, longest, factor: Scalars on the same device, so that the host need not wait for them.
            `longest` None: nothing is shortened.

    Returns:
        `(gradient_BS, kept_B1)`: the gradient to inject, and the share of its length that each
        lane's gradient kept.
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
    """The conversion of a synthesizer's predictions to injected gradients.

    Args:
        trust: Source of the unit, the bound and the calibrated factor.
        factor: Factor by which predictions are multiplied. None: the calibrated one
            (`Trust.factor`).
        bounded: Whether each lane's gradient is capped (`Trust.longest`). Without the bound,
            bootstrapped targets can feed on themselves.
        noise: Generator of random directions, which are injected with the prediction's length in
            its place (a control). None: the prediction itself.
        ranks: The processes that share the lanes.

    Attributes:
        capped: Running mean of the share of lanes whose gradient the bound shortened.
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
        """The factor by which predictions are multiplied: the given one, or the calibrated one."""
        return self.trust.factor if self.fixed_factor is None else self.fixed_factor

    @property
    def longest(self) -> Tensor | None:
        """The largest norm that a lane's gradient may have; None without a bound."""
        return self.trust.longest if self.bounded else None

    @torch.no_grad()
    def inject(self, predicted_BS: Tensor) -> Tensor:
        """Returns the gradient to inject, `(B, S)`: factor·ŝ, bounded; or noise of that length.

        Args:
            predicted_BS: The synthesizer's prediction, in its own unit. If it is not finite,
                because the synthesizer diverged, nothing is injected and training continues.
        """
        gradient_BS, kept_B1 = self._injected_gradient(
            predicted_BS, unit=self.trust.unit, longest=self.longest, factor=self.factor
        )
        if self.bounded:
            self.capped.lerp_((kept_B1 < 1).float().mean(), 1 / _CAPPED_MEAN_OVER)
        return gradient_BS if self.noise is None else self._noise_like(gradient_BS)

    def bound(self, predicted_MS: Tensor) -> Tensor:
        """Returns a prediction in nats as it would be injected with factor 1."""
        bounded_MS, _ = self._injected_gradient(
            predicted_MS, unit=self._one, longest=self.longest, factor=self._one
        )
        return bounded_MS

    def _noise_like(self, gradient_BS: Tensor) -> Tensor:
        """Returns random directions as long as the lanes' gradients, drawn for all ranks' lanes."""
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
        """Returns everything here that steps change; every rank must call it."""
        self.ranks.average([self.capped])
        return {
            "capped": self.capped,
            "noise": None if self.noise is None else self.noise.get_state(),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restores what `state_dict` returned. If the noise was drawn on another kind of device,
        its generator starts anew, because that state means nothing on this device."""
        self.capped.copy_(tree["capped"])
        if self.noise is not None and self.noise.get_state().shape == tree["noise"].shape:
            self.noise.set_state(tree["noise"])
