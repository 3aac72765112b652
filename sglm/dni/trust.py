"""How far a synthesizer's predictions are to be trusted, from what pure observations showed.

A *pure* observation is a state gradient into which nothing synthetic went. Shapes: M states, S
coordinates of a state. All of this is measured before the synthesizer learns from the observation,
so it is held out.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sglm.runtime.ranks import ALONE, Ranks

RUNNING_MEAN_OVER = 100  # observations; long against noise, short against a training run
_LONGEST = 4.0  # mean lengths; lengths are spread widely, and the long ones carry the most
_SMALLEST = 1e-12  # keeps ratios of a zero gradient finite


class Agreement(NamedTuple):
    """How good the synthesizer's prediction of an observed gradient was: scalars.

    Attributes:
        cosine: of the angle between the two, over all states and coordinates.
        relative_mse: ‖ŝ − g‖² / ‖g‖²; 1 is what predicting zero gets, above 1 is worse than that.
        norm_ratio: ‖ŝ‖ / ‖g‖.
    """

    cosine: Tensor
    relative_mse: Tensor
    norm_ratio: Tensor


@torch.no_grad()
def agreement(predicted_MS: Tensor, observed_MS: Tensor, ranks: Ranks = ALONE) -> Agreement:
    """Compares a prediction with what was observed, over the lanes of all ranks.

    Where the observation is not finite, all of it is NaN.
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
    unseen = observed <= _SMALLEST
    return Agreement(
        cosine=sums[3] / (observed * predicted.clamp_min(_SMALLEST)),
        # Where the observed gradient is zero, what a prediction of zero gets.
        relative_mse=torch.where(unseen, 1.0, sums[2] / observed.square()),
        norm_ratio=torch.where(unseen, 0.0, predicted / observed),
    )


class Trust:
    """Running means over pure observations: the bound on ŝ, and the factor that suits it best.

    All of it stays on the device: nobody waits for a number in the midst of a step.

    Attributes:
        norm: mean length of the observed gradients, in which the bound is measured. Zero before
            the first observation: until then the bound lets nothing through.
        inner, inner_squared: means of ⟨g, ŝ⟩ per state, and of the square of that.
        predicted, observed: means of ⟨ŝ, ŝ⟩ and ⟨g, g⟩ per state.
        count: observations so far.
        unit: root mean square of one coordinate of observed gradients; 1 before any.
        longest: the bound: the largest norm that a lane's synthetic gradient may have.
        factor: α = ⟨g, ŝ⟩ / ⟨ŝ, ŝ⟩ within [0, 1], the best linear shrinkage of ŝ towards zero. One
            standard error is taken off the numerator, so that a prediction that has not been seen
            to explain anything is not injected.
    """

    def __init__(self, size: int, *, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.size = size
        self.ranks = ranks
        names = ("norm", "inner", "inner_squared", "predicted", "observed")
        self._means = torch.zeros(len(names), device=device)
        self.norm, self.inner, self.inner_squared, self.predicted, self.observed = self._means
        self.count = torch.zeros((), device=device)
        self._consequences = torch.zeros(3, device=device)
        self.unit, self.longest, self.factor = self._consequences
        self._conclude()

    @torch.no_grad()
    def observe(self, predicted_MS: Tensor, observed_MS: Tensor) -> None:
        """Takes in one pure observation; the prediction is the one that would be injected.

        One whose squares are not finite is left out: the running means would never recover.
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
        self._conclude()

    def _conclude(self) -> None:
        """Computes unit, bound and factor from the means."""
        mean_square = self.observed / self.size
        unit = torch.where(mean_square > 0, mean_square, 1.0).sqrt()
        variance = (self.inner_squared - self.inner.square()).clamp_min(0)
        error = (variance / self.count.clamp(1, RUNNING_MEAN_OVER)).sqrt()
        factor = ((self.inner - error) / self.predicted.clamp_min(_SMALLEST)).clamp(0, 1)
        self._consequences.copy_(torch.stack((unit, _LONGEST * self.norm, factor)))

    def explained(self, factor: float | Tensor) -> float:
        """Share of the observed gradients' squared length that factor·ŝ explains."""
        share = 2 * factor * self.inner - factor**2 * self.predicted
        return float(share / self.observed.clamp_min(_SMALLEST))

    def state_dict(self) -> dict[str, Tensor]:
        """Everything here."""
        return {"means": self._means, "count": self.count}

    def load_state_dict(self, tree: dict[str, Tensor]) -> None:
        """Puts back what `state_dict` gave."""
        self._means.copy_(tree["means"])
        self.count.copy_(tree["count"])
        self._conclude()
