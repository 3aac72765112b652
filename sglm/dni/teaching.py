"""The training of a synthesizer: it predicts, is measured on probes, and learns what was observed.

Equation (9) of docs/algorithm.md. Shapes: B lanes, S coordinates of a lane's state.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.config import SynthesizerConfig
from sglm.dni.injection import Injection
from sglm.dni.synthesizer import (
    GRU_LEARNS,
    Prediction,
    Synthesizer,
    hidden_units,
    recurrent_state_floats,
)
from sglm.dni.trust import Agreement, Trust, agreement
from sglm.model.language_model import ModelShape
from sglm.optim.optimizer import step_where_finite
from sglm.runtime.memory_basis import MemoryBasis
from sglm.runtime.ranks import ALONE, Ranks

_ECHO_MEAN_OVER = 20  # windows; a runaway feeds on itself within about this many


class Lesson(NamedTuple):
    """One boundary's state and the gradient that should have been predicted there.

    Attributes:
        state_BS: The packed state.
        recurrent_state: The state that a recurrent synthesizer received with it, or None.
        observed_BS: The target; lanes where it is not finite are left out.
        next_BS: The auxiliary target, in the synthesizer's own unit, or None.
        pure: Whether nothing synthetic went into the target.
        probe: Whether the synthesizer is measured on it.
    """

    state_BS: Tensor
    recurrent_state: Tensor | None
    observed_BS: Tensor
    next_BS: Tensor | None
    pure: bool
    probe: bool


class Teaching:
    """The training of a synthesizer: measurement on probes, and one regression step per lesson.

    It waits for no number from the device: whatever depends on one is computed there.

    Args:
        synthesizer: The network to train.
        learning_rate: Learning rate of its own Adam, constant (Shang & Zhang 2019, sec. 4).
        trust: Running means that the probes update.
        injection: Source of the bound, which is applied to predictions before `trust` takes them.
        ranks: The processes that share the lanes.

    Attributes:
        echo: Running mean of the share that the synthesizer explains of observations containing its
            own predictions.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        *,
        learning_rate: float,
        trust: Trust,
        injection: Injection,
        ranks: Ranks = ALONE,
    ) -> None:
        self.synthesizer = synthesizer
        self.optimizer = torch.optim.Adam(synthesizer.parameters(), lr=learning_rate, fused=True)
        self.trust = trust
        self.injection = injection
        self.ranks = ranks
        self.echo = torch.zeros((), device=trust.unit.device)

    def learn(self, lesson: Lesson) -> Agreement | None:
        """Predicts at the lesson's state, measures the prediction, and only then learns.

        Returns:
            The agreement with the observation on a probe, NaN if the observation is not finite;
            None if the lesson is not a probe.
        """
        prediction: Prediction = self.synthesizer(lesson.state_BS, lesson.recurrent_state)
        on_probe = self._measure(lesson, prediction.gradient_BS.detach() * self.trust.unit)
        self._regress(lesson, prediction)
        return on_probe

    @torch.no_grad()
    def _measure(self, lesson: Lesson, predicted_BS: Tensor) -> Agreement | None:
        """Measures a prediction in nats: agreement on a probe, echo if the lesson is not pure."""
        observed_BS, on_probe = lesson.observed_BS, None
        if lesson.probe:
            whole_BS = observed_BS.where(torch.isfinite(observed_BS).all(), math.nan)
            on_probe = agreement(predicted_BS, whole_BS, self.ranks)
            # Trust concerns the prediction as it would be injected.
            self.trust.observe(self.injection.bound(predicted_BS), observed_BS)
        if not lesson.pure:
            with_itself = agreement(predicted_BS, observed_BS, self.ranks)
            echo = 1 - with_itself.relative_mse.float()
            echo = echo.where(torch.isfinite(echo), self.echo)
            self.echo.lerp_(echo, 1 / _ECHO_MEAN_OVER)
        return on_probe

    def _regress(self, lesson: Lesson, prediction: Prediction) -> None:
        """Takes one optimizer step on the mean squared error over all lanes."""
        loss = regression_loss(lesson, prediction, self.trust.unit, ranks=self.ranks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss = loss.detach().clone()
        gradients = [p.grad for p in self.synthesizer.parameters() if p.grad is not None]
        self.ranks.average([*gradients, mean_loss])
        # A loss that is not finite (for example, if no lane has a finite target) changes nothing.
        step_where_finite(self.optimizer, torch.isfinite(mean_loss))


def regression_loss(
    lesson: Lesson, prediction: Prediction, unit: Tensor, *, ranks: Ranks = ALONE
) -> Tensor:
    """Returns the squared error, summed over coordinates, averaged over lanes with finite targets.

    It is NaN if no lane has a finite target.

    Args:
        lesson: The lesson of one boundary.
        prediction: The prediction at its state, in multiples of `unit`.
        unit: The unit of the loss, by which observed gradients are divided.
        ranks: The processes that share the lanes. The loss is this rank's; its mean over the ranks
            is the loss over all lanes.
    """
    observed_BS = lesson.observed_BS / unit
    finite_B = torch.isfinite(observed_BS.sum(dim=1))
    count = finite_B.sum().to(observed_BS.dtype)
    ranks.average([count])

    def error(predicted_BS: Tensor, target_BS: Tensor) -> Tensor:
        # A lane without a finite target has no error: its prediction stands in for the target.
        target_BS = target_BS.where(finite_B[:, None], predicted_BS.detach())
        return F.mse_loss(predicted_BS, target_BS, reduction="sum") / count

    loss = error(prediction.gradient_BS, observed_BS)
    if prediction.next_gradient_BS is not None and lesson.next_BS is not None:
        loss = loss + error(prediction.next_gradient_BS, lesson.next_BS)
    return loss


def regression_floats(settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis) -> float:
    """Returns the floats that one regression holds."""
    if settings.kind == "recurrent":
        return GRU_LEARNS * recurrent_state_floats(settings, shape, basis)
    # States, gradients, predictions, errors and their gradients.
    return basis.lanes * (8 * shape.state_size + 24 * hidden_units(settings))
