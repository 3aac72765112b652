"""Is the synthesizer worth its keep? Watches for a runaway; says at the end what it was good for.

A runaway: targets of a synthesizer contain its own predictions, and where these outgrow what the
text sends back, it ends up predicting itself, perfectly, while the model drowns in it.
"""

import math
from dataclasses import dataclass

import torch

from sglm.config import Config
from sglm.dni.boundary import Boundary
from sglm.optim.schedule import Mode, StepPlan

RAN_AWAY = (
    "step {step:,}: the synthesizer predicts little but itself and the loss does not fall;"
    " going on with real gradients until the next cycle"
)

_OWN_WORD = 0.9  # share of what it hears in synthetic phases that is explained: its own echo
_PATIENCE = 3  # reporting intervals without a new lowest loss; noise alone seldom makes as many
_EXPLAINS_NOTHING = 0.002  # text at its best is above this, an untaught net below
_OFTEN_CUT = 0.2


@dataclass
class Watch:
    """Ends a synthetic phase in which the synthesizer hears little but itself and nothing improves.

    Attributes:
        lowest_loss: of all reporting intervals so far, nats per token.
        without_progress: intervals since then in which the synthesizer heard itself.
        ended_cycle: the cycle whose synthetic phase was ended, or None.
        ended_at_step: when.
    """

    lowest_loss: float | None = None
    without_progress: int = 0
    ended_cycle: int | None = None
    ended_at_step: int | None = None

    def plan(self, plan: StepPlan) -> StepPlan:
        """The plan as it is to be followed: real for the rest of a cycle that was ended."""
        return plan._replace(mode=Mode.REAL) if plan.cycle == self.ended_cycle else plan

    def interval(self, step: int, loss: float, plan: StepPlan, boundary: Boundary | None) -> bool:
        """Takes in one reporting interval.

        Args:
            step: steps done.
            loss: mean over the interval, nats per token.
            plan: of its last step.
            boundary: whose synthesizer to watch.

        Returns:
            Whether this ended the phase.
        """
        if not math.isfinite(loss):
            return False  # every step was skipped
        improved = self.lowest_loss is None or loss < self.lowest_loss
        if improved:
            self.lowest_loss = loss
        if boundary is None or plan.mode is Mode.REAL:
            self.without_progress = 0
            return False
        echoes = not improved and float(boundary.echo) > _OWN_WORD
        self.without_progress = self.without_progress + 1 if echoes else 0
        if self.without_progress < _PATIENCE:
            return False
        self.ended_cycle, self.ended_at_step, self.without_progress = plan.cycle, step, 0
        return True


def diagnosis(config: Config, boundary: Boundary, watch: Watch) -> str:
    """One sentence: what the synthesizer explained, what was done with it, and what to try."""
    trust = boundary.trust
    if trust.count == 0:
        return "synthesizer: never measured, the run was too short for it"
    if not all(bool(torch.isfinite(each).all()) for each in boundary.synthesizer.parameters()):
        return "synthesizer: diverged, and injected nothing since; lower synthesizer.learning_rate"
    factor, capped = float(boundary.factor), float(boundary.capped)
    explained = trust.explained(factor)
    kind = "calibrated to" if boundary.fixed_factor is None else "fixed at"
    facts = (
        f"synthesizer: explained {max(0.0, 100 * explained):.1f} % of the gradient that came back"
        f" (last {min(int(trust.count), 100)} probes), factor {kind} {factor:.2f}"
    )
    if boundary.trust_bound:
        facts += f", trust bound cut {100 * capped:.0f} % of its predictions"
    return f"{facts}; {_advice(config, explained, capped, watch)}"


def _advice(config: Config, explained: float, capped: float, watch: Watch) -> str:
    settings = config.synthesizer
    if watch.ended_at_step is not None:
        return (
            f"it ran away (step {watch.ended_at_step:,}: it predicted little but itself and the"
            ' phase was ended early): set synthesizer.factor = "calibrated" and'
            " synthesizer.trust_bound = true, or lower synthesizer.learning_rate"
        )
    if settings.trust_bound and capped > _OFTEN_CUT:
        return "it says more than is observed: lower synthesizer.learning_rate"
    if explained < _EXPLAINS_NOTHING:
        harmful = settings.factor != "calibrated" and settings.factor > 0
        what = "what was injected was noise" if harmful else "so next to nothing was injected"
        if settings.kind != "lookahead":
            return f'{what}: try synthesizer.kind = "lookahead", which reads the coming tokens'
        return f'{what}: try a longer run, or save its time with schedule.mode = "real"'
    return "whether that helps on this text: sglm compare"
