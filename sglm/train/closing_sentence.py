"""Was the synthesizer worth its cost? The sentence with which a training ends."""

from sglm.config import Config
from sglm.dni.estimator import EstimatorStatus
from sglm.dni.trust import RUNNING_MEAN_OVER
from sglm.train.runaway import RunawayWatch

_EXPLAINS_NOTHING = 0.002  # text at its best is above this, a net that has learned nothing below
_OFTEN_CAPPED = 0.2


def closing_sentence(config: Config, status: EstimatorStatus, runaway: RunawayWatch) -> str:
    """What the synthesizer explained, what was done with it, and what to try."""
    if status.probes == 0:
        return "synthesizer: never measured, the run was too short for it"
    if not status.is_finite:
        return "synthesizer: diverged, and injected nothing since; lower synthesizer.learning_rate"
    kind = "calibrated to" if status.is_calibrated else "fixed at"
    facts = (
        f"synthesizer: explained {max(0.0, 100 * status.explained):.1f} % of the gradient that"
        f" came back (last {min(status.probes, RUNNING_MEAN_OVER)} probes), factor {kind}"
        f" {status.factor:.2f}"
    )
    if status.capped is not None:
        facts += f", trust bound cut {100 * status.capped:.0f} % of its predictions"
    return f"{facts}; {_advice(config, status, runaway)}"


def _advice(config: Config, status: EstimatorStatus, runaway: RunawayWatch) -> str:
    settings = config.synthesizer
    if runaway.ended_at_step is not None:
        return (
            f"it ran away (step {runaway.ended_at_step:,}: it predicted little but itself and the"
            ' phase was ended early): set synthesizer.factor = "calibrated" and'
            " synthesizer.trust_bound = true, or lower synthesizer.learning_rate"
        )
    if status.capped is not None and status.capped > _OFTEN_CAPPED:
        return "it says more than is observed: lower synthesizer.learning_rate"
    if status.explained < _EXPLAINS_NOTHING:
        harmful = not status.is_calibrated and settings.factor != 0
        what = "what was injected was noise" if harmful else "so next to nothing was injected"
        if settings.kind not in ("lookahead", "adjoint"):
            return f'{what}: try synthesizer.kind = "lookahead", which reads the coming tokens'
        return f'{what}: try a longer run, or save its time with schedule.mode = "real"'
    return "whether that helps on this text: sglm compare"
