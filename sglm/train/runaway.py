"""The watch that detects a runaway synthesizer and ends its synthetic phase.

The targets of a bootstrapped synthesizer contain its own predictions. If these outgrow the
gradients of the text's own losses, it ends up predicting itself, perfectly, while the model learns
nothing.
"""

import math
from dataclasses import dataclass

from sglm.dni.estimator import EstimatorStatus
from sglm.optim.schedule import Mode

RAN_AWAY = (
    "step {step:,}: the synthesizer predicts little but itself and the loss does not fall;"
    " continuing with real gradients until the next cycle"
)

_MOSTLY_ECHO = 0.9  # above this `EstimatorStatus.echo`, it predicts little but itself
_PATIENCE = 3  # log intervals without a new lowest loss; noise alone seldom causes as many


@dataclass(kw_only=True)
class RunawayWatch:
    """A watch that ends a synthetic phase if the synthesizer predicts itself and nothing improves.

    Attributes:
        lowest_loss: The lowest mean loss of a log interval so far, in nats per token.
        without_progress: Number of intervals in a row without a new lowest loss in which the
            synthesizer predicted little but itself.
        ended_cycle: The latest cycle whose synthetic phase was ended, or None.
        ended_at_step: The number of steps done when it was ended, or None.
    """

    lowest_loss: float | None = None
    without_progress: int = 0
    ended_cycle: int | None = None
    ended_at_step: int | None = None

    def update(
        self, step: int, loss: float, *, cycle: int, mode: Mode, status: EstimatorStatus | None
    ) -> bool:
        """Updates the watch after one log interval.

        Args:
            step: Number of steps done.
            loss: The mean loss over the interval, in nats per token.
            cycle, mode: The cycle of its last step, and the mode that was followed there.
            status: The estimator's status; None if it measures nothing.

        Returns:
            Whether this ended the synthetic phase.
        """
        if not math.isfinite(loss):
            return False  # every step was skipped
        improved = self.lowest_loss is None or loss < self.lowest_loss
        if improved:
            self.lowest_loss = loss
        if status is None or mode is Mode.REAL:
            self.without_progress = 0
            return False
        echoes = not improved and status.echo > _MOSTLY_ECHO
        self.without_progress = self.without_progress + 1 if echoes else 0
        if self.without_progress < _PATIENCE:
            return False
        self.ended_cycle, self.ended_at_step, self.without_progress = cycle, step, 0
        return True
