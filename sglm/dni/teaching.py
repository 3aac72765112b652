"""How a synthesizer learns: predict what was observed, measure that on probes, regress onto it.

Equation (9) of docs/algorithm.md. Shapes: B lanes, S coordinates of a lane's state, P lessons,
M = P·B states.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.config import SynthesizerConfig
from sglm.dni.injection import Injection
from sglm.dni.stretch import Lesson
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

_ECHO_MEAN_OVER = 20  # windows; a runaway feeds on itself within about so many


class Teaching:
    """Measures a synthesizer on its probes, then moves its weights by one regression.

    No method waits for a number from the device: what depends on one is decided there.

    Args:
        synthesizer: what learns.
        learning_rate: of its own Adam, constant (Shang & Zhang 2019, sec. 4).
        trust: takes in what pure observations show.
        injection: its bound is part of what is measured.
        stretch: windows of a stretch.
        ranks: the processes that share the lanes.

    Attributes:
        echo: running mean of the share that the synthesizer explains of the observations that
            contain its own predictions.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        *,
        learning_rate: float,
        trust: Trust,
        injection: Injection,
        stretch: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self.synthesizer = synthesizer
        self.optimizer = torch.optim.Adam(synthesizer.parameters(), lr=learning_rate, fused=True)
        self.trust = trust
        self.injection = injection
        self.ranks = ranks
        self.echo = torch.zeros((), device=trust.unit.device)
        self._weight = min(1.0, stretch / _ECHO_MEAN_OVER)

    def predict(self, lessons: Sequence[Lesson], contexts: Tensor | None) -> Prediction:
        """The synthesizer's prediction at the lessons' states, in its own unit."""
        states_MS = torch.cat([lesson.state_BS for lesson in lessons])
        prediction: Prediction = self.synthesizer(states_MS, contexts)
        return prediction

    @torch.no_grad()
    def measure(
        self, lessons: Sequence[Lesson], prediction: Prediction, *, update_trust: bool
    ) -> Agreement | None:
        """How good it was on the probes among the lessons; and how much of an echo there is.

        Args:
            lessons: that were not learned from yet.
            prediction: at their states.
            update_trust: whether probes are what the trust is made of.

        Returns:
            None without a probe; NaN where a probe was not finite.
        """
        predicted_PBS = (prediction.gradient_BS * self.trust.unit).chunk(len(lessons))
        pairs = list(zip(predicted_PBS, lessons, strict=True))
        probes = [(each_BS, lesson.observed_BS) for each_BS, lesson in pairs if lesson.probe]
        on_probes = None
        if probes:
            predicted_MS, observed_MS = map(torch.cat, zip(*probes, strict=True))
            observed_MS = observed_MS.where(torch.isfinite(observed_MS).all(), math.nan)
            on_probes = agreement(predicted_MS, observed_MS, self.ranks)
            if update_trust:
                for predicted_BS, observed_BS in probes:
                    self.update_trust(predicted_BS, observed_BS)
        # Once in a stretch is enough: an echo does not come and go.
        mixed = next(((each_BS, lesson) for each_BS, lesson in pairs if not lesson.pure), None)
        if mixed is not None:
            with_itself = agreement(mixed[0], mixed[1].observed_BS, self.ranks)
            echo = 1 - with_itself.relative_mse.float()
            self.echo.lerp_(echo.where(torch.isfinite(echo), self.echo), self._weight)
        return on_probes

    def update_trust(self, predicted_MS: Tensor, observed_MS: Tensor) -> None:
        """One pure observation, of the prediction as it would be injected; both in nats."""
        self.trust.observe(self.injection.bound(predicted_MS), observed_MS)

    def regress(self, lessons: Sequence[Lesson], prediction: Prediction) -> None:
        """One step of the synthesizer's optimizer on the mean squared error over all lanes."""
        loss = regression_loss(lessons, prediction, self.trust.unit, ranks=self.ranks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss = loss.detach().clone()
        gradients = [p.grad for p in self.synthesizer.parameters() if p.grad is not None]
        self.ranks.average([*gradients, mean_loss])
        # One that is not finite (or of which no lane teaches anything) leaves everything as it is.
        step_where_finite(self.optimizer, torch.isfinite(mean_loss))


def regression_loss(
    lessons: Sequence[Lesson], prediction: Prediction, unit: Tensor, *, ranks: Ranks = ALONE
) -> Tensor:
    """The mean over lanes of the squared error, in units of what gradients are like: a scalar.

    Where no lane teaches anything it is not a number.

    Args:
        lessons: of one or several boundaries.
        prediction: at their states, in that unit.
        unit: what observed gradients are divided by.
        ranks: the loss is this rank's; its mean over them is that of all lanes.
    """
    observed_MS = torch.cat([lesson.observed_BS for lesson in lessons]) / unit
    finite_M = torch.isfinite(observed_MS.sum(dim=1))
    count = finite_M.sum().to(observed_MS.dtype)
    ranks.average([count])

    def error(predicted_MS: Tensor, right_MS: Tensor) -> Tensor:
        # Where there is nothing to learn, what was predicted counts as right.
        right_MS = right_MS.where(finite_M[:, None], predicted_MS.detach())
        return F.mse_loss(predicted_MS, right_MS, reduction="sum") / count

    loss = error(prediction.gradient_BS, observed_MS)
    targets = [lesson.next_BS for lesson in lessons if lesson.next_BS is not None]
    if prediction.next_gradient_BS is not None and targets:
        loss = loss + error(prediction.next_gradient_BS, torch.cat(targets))
    return loss


def regression_floats(
    settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis, *, boundaries: int
) -> float:
    """What one regression holds besides the stretch, over the lessons of so many boundaries."""
    if settings.kind == "recurrent":
        return GRU_LEARNS * recurrent_state_floats(settings, shape, basis)
    # States, gradients, predictions, errors and their gradients.
    return basis.lanes * boundaries * (8 * shape.state_size + 24 * hidden_units(settings))
