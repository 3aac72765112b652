"""The sentence with which a training ends: whether the synthesizer was worth its cost."""

import math

from sglm.config import Config
from sglm.dni.estimator import EstimatorStatus
from sglm.dni.gauge import REFERENCE_STEPS, GaugeReading
from sglm.dni.trust import RUNNING_MEAN_OVER
from sglm.train.build import injects_once, stretch_windows
from sglm.train.runaway import RunawayWatch

# Share of the squared gradient explained; a synthesizer that has learned nothing stays below it.
_EXPLAINS_NOTHING = 0.002
_OFTEN_CAPPED = 0.2
_TOO_NOISY = 0.5  # the standard error, as a share of the measured value


def diverged_sentence(vocab_size: int) -> str:
    """Returns the sentence for a model whose validation loss never beat equal probabilities."""
    return (
        f"the model predicts worse than a guess among its {vocab_size:,} tokens: the training"
        " diverged; lower optimizer.learning_rate, and give another --out"
    )


def closing_sentence(
    config: Config,
    status: EstimatorStatus,
    runaway: RunawayWatch,
    *,
    windows_per_epoch: int,
    reading: GaugeReading | None = None,
) -> str:
    """Says what the synthesizer explained, how it was injected, its effect, and what to try next.

    Args:
        config: The run's configuration.
        status: The state of its estimator.
        runaway: The watch that knows whether a synthetic phase was ended.
        windows_per_epoch: Number of windows in an epoch.
        reading: The gauge's measurements, if there is a gauge.
    """
    if status.probes == 0:
        return "synthesizer: never measured, the run was too short for it"
    if not status.is_finite:
        return "synthesizer: diverged, and injected nothing since; lower synthesizer.learning_rate"
    factor = f"calibrated to {status.factor:.2f}"
    if not status.is_calibrated:
        factor = f"fixed at {config.synthesizer.factor}"
    facts = (
        f"synthesizer: explained {max(0.0, 100 * status.explained):.1f} % of the observed state"
        f" gradient (last {min(status.probes, RUNNING_MEAN_OVER)} probes), factor {factor}"
    )
    if status.capped is not None:
        facts += f", trust bound shortened {100 * status.capped:.0f} % of its predictions"
    if reading is not None and reading.windows:
        facts += f"; {_effect(reading, config, windows_per_epoch)}"
    return f"{facts}; {_advice(config, status, runaway)}"


def _effect(reading: GaugeReading, config: Config, windows_per_epoch: int) -> str:
    """Describes the effect of the injected gradients on the weights."""
    every = ""
    if injects_once(config):
        every = f", at one window in {min(stretch_windows(config), windows_per_epoch)},"
    windows = f"{reading.windows} window{'s' if reading.windows > 1 else ''}"
    # `not … <`, so that a noise of NaN counts as too noisy.
    if not reading.noise < _TOO_NOISY or math.isnan(reading.cosine):
        return f"its effect on the weights is not known: too few windows, or too noisy ({windows})"
    return (
        f"what was injected{every} moved the weights {100 * reading.share:.0f} % as far as the"
        f" exact gradient of {REFERENCE_STEPS} more tokens would (cosine {reading.cosine:.2f},"
        f" slope {reading.beta:.2f}, {windows})"
    )


def _injects(config: Config) -> bool:
    """Returns whether any cycle was synthetic."""
    schedule = config.schedule
    alternates = schedule.start == "synthetic" or len(schedule.cycle_lengths()) > 1
    return schedule.mode == "synthetic" or (schedule.mode == "alternating" and alternates)


def _advice(config: Config, status: EstimatorStatus, runaway: RunawayWatch) -> str:
    settings = config.synthesizer
    if runaway.ended_at_step is not None:
        return (
            f"it ran away (step {runaway.ended_at_step:,}: it predicted little but itself and the"
            ' phase was ended early): set synthesizer.factor = "calibrated" and'
            " synthesizer.trust_bound = true, or lower synthesizer.learning_rate"
        )
    if not _injects(config):
        return "nothing was injected: no cycle was synthetic; give schedule.cycles two or more"
    # These kinds learn gradients, which a lower rate makes shorter; the others learn other things.
    learned = settings.kind in ("mlp", "recurrent", "linear")
    if learned and status.capped is not None and status.capped > _OFTEN_CAPPED:
        return "its predictions are too long: lower synthesizer.learning_rate"
    if status.explained < _EXPLAINS_NOTHING:
        # An adjoint's factor, even a fixed one, is zero while its network is not useful.
        harmful = status.factor != 0 and not status.is_calibrated
        what = "what was injected was noise" if harmful else "so next to nothing was injected"
        if settings.kind != "adjoint":
            return (
                f'{what}: try synthesizer.kind = "adjoint", which reads the coming tokens and goes'
                " back through the model"
            )
        return f'{what}: try a longer run, or save its time with schedule.mode = "real"'
    return "sglm compare shows whether that helps on this text"
