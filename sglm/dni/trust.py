"""Measures of how far a synthesizer's predictions can be trusted, from pure observations.

A *pure* observation is a state gradient into which nothing synthetic went. Everything is measured
before the synthesizer learns from the observation, so the measures are held out. Shapes: M states,
S coordinates of a state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sglm.runtime.ranks import ALONE, Ranks

RUNNING_MEAN_OVER = 100  # observations; long against noise, short against a training run
_LONGEST = 4.0  # mean lengths; lengths vary widely, and the long gradients carry most of the signal
_SMALLEST = 1e-12  # keeps ratios of a zero gradient finite


class Agreement(NamedTuple):
    """The agreement of a prediction ŝ with an observed gradient g: scalars.

    Attributes:
        cosine: Cosine of the angle between the two, over all states and coordinates.
        relative_mse: ‖ŝ − g‖² / ‖g‖². Predicting zero gives 1; values above 1 are worse than that.
        norm_ratio: ‖ŝ‖ / ‖g‖.
    """

    cosine: Tensor
    relative_mse: Tensor
    norm_ratio: Tensor


@torch.no_grad()
def agreement(predicted_MS: Tensor, observed_MS: Tensor, ranks: Ranks = ALONE) -> Agreement:
    """Compares a prediction with an observation, over the lanes of all ranks.

    If the observation contains NaN, all results are NaN.
    """
    sums = torch.stack(
        (
            observed_MS.square().sum(),
            predicted_MS.square().sum(),
            (predicted_MS - observed_MS).square().sum(),
            (predicted_MS * observed_MS).sum(),
        )
    )
    ranks.average([sums])
    observed, predicted = sums[:2].sqrt()
    observed = observed.clamp_min(_SMALLEST)
    is_zero = observed <= _SMALLEST
    return Agreement(
        cosine=sums[3] / (observed * predicted.clamp_min(_SMALLEST)),
        # If the observed gradient is zero, the values are those that predicting zero gives.
        relative_mse=torch.where(is_zero, 1.0, sums[2] / observed.square()),
        norm_ratio=torch.where(is_zero, 0.0, predicted / observed),
    )


class Trust:
    """The running means over pure observations, and the bound on ŝ and best factor they imply.

    Everything stays on the device, so that no step has to wait for a number.

    Attributes:
        norm: Mean length of the observed gradients, in which the bound is measured. Zero before
            the first observation: until then the bound lets nothing through.
        inner, inner_squared: Means of an observation's ⟨g, ŝ⟩ per state, and of the square of that.
        predicted, observed: Means of ⟨ŝ, ŝ⟩ and ⟨g, g⟩ per state.
        count: Number of observations so far.
        unit: Root mean square of one coordinate of observed gradients; 1 before any observation.
        longest: The bound, the largest norm that a lane's synthetic gradient may have.
        factor: α = ⟨g, ŝ⟩ / ⟨ŝ, ŝ⟩ within [0, 1], the best linear shrinkage of ŝ towards zero. One
            standard error is subtracted from the numerator, so that a prediction is not injected
            before it has been shown to explain something.
    """

    def __init__(self, size: int, *, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.size = size
        self.ranks = ranks
        names = ("norm", "inner", "inner_squared", "predicted", "observed")
        self._means = torch.zeros(len(names), device=device)
        self.norm, self.inner, self.inner_squared, self.predicted, self.observed = self._means
        self.count = torch.zeros((), device=device)
        self._derived = torch.zeros(3, device=device)
        self.unit, self.longest, self.factor = self._derived
        self._derive()

    @torch.no_grad()
    def observe(self, predicted_MS: Tensor, observed_MS: Tensor) -> None:
        """Updates the means with one pure observation and the prediction that would be injected.

        If their squares are not finite, nothing changes: the running means would never recover.
        """
        lengths_M = observed_MS.norm(dim=1)
        means = torch.stack(
            (
                lengths_M.mean(),
                (predicted_MS * observed_MS).sum(dim=1).mean(),
                predicted_MS.square().sum(dim=1).mean(),
                lengths_M.square().mean(),
            )
        ).float()
        self.ranks.average([means])
        norm, inner, predicted, observed = means
        newest = torch.stack((norm, inner, inner.square(), predicted, observed))
        finite = torch.isfinite(newest).all()
        self.count += finite
        weight = finite / self.count.clamp(1, RUNNING_MEAN_OVER)
        self._means.lerp_(torch.where(finite, newest, self._means), weight)
        self._derive()

    def _derive(self) -> None:
        """Computes unit, bound and factor from the means."""
        mean_square = self.observed / self.size
        unit = torch.where(mean_square > 0, mean_square, 1.0).sqrt()
        variance = (self.inner_squared - self.inner.square()).clamp_min(0)
        error = (variance / self.count.clamp(1, RUNNING_MEAN_OVER)).sqrt()
        factor = ((self.inner - error) / self.predicted.clamp_min(_SMALLEST)).clamp(0, 1)
        self._derived.copy_(torch.stack((unit, _LONGEST * self.norm, factor)))

    def explained(self, factor: float | Tensor) -> float:
        """Returns the share of the observed gradients' squared length that factor·ŝ explains."""
        share = 2 * factor * self.inner - factor**2 * self.predicted
        return float(share / self.observed.clamp_min(_SMALLEST))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything that observations change."""
        return {"means": self._means, "count": self.count}

    def load_state_dict(self, tree: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        self._means.copy_(tree["means"])
        self.count.copy_(tree["count"])
        self._derive()
