"""Notices a synthesizer that has run away, and ends its synthetic phase.

Targets of a bootstrapped synthesizer contain its own predictions. Where these outgrow the gradients
of the text's own losses, it ends up predicting itself, perfectly, while the model learns nothing.
"""

import math
from dataclasses import dataclass

from sglm.dni.estimator import EstimatorStatus
from sglm.optim.schedule import Mode

RAN_AWAY = (
    "step {step:,}: the synthesizer predicts little but itself and the loss does not fall;"
    " going on with real gradients until the next cycle"
)

_MOSTLY_ECHO = 0.9  # `EstimatorStatus.echo` above which it predicts little but itself
_PATIENCE = 3  # log intervals without a new lowest loss; noise alone seldom makes as many


@dataclass(kw_only=True)
class RunawayWatch:
    """Ends a synthetic phase in which the synthesizer predicts itself and nothing improves.

    Attributes:
        lowest_loss: of all log intervals so far, nats per token.
        without_progress: intervals since then in which the synthesizer predicted itself.
        ended_cycle: the cycle whose synthetic phase was ended, or None.
        ended_at_step: when.
    """

    lowest_loss: float | None = None
    without_progress: int = 0
    ended_cycle: int | None = None
    ended_at_step: int | None = None

    def interval(
        self, step: int, loss: float, *, cycle: int, mode: Mode, status: EstimatorStatus | None
    ) -> bool:
        """Takes in one log interval.

        Args:
            step: steps done.
            loss: mean over the interval, nats per token.
            cycle, mode: of its last step; the mode that was followed.
            status: of the estimator.

        Returns:
            Whether this ended the phase.
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
