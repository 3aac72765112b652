"""The training step: truncated backpropagation through time with an estimated state gradient.

`docs/algorithm.md` derives the five numbered steps of `train_step`. Losses are sums of nats; a
state gradient is that of one lane's sum, not divided by B or T.

Shapes: T time steps, B lanes, S coordinates of a lane's state, H features.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sglm.dni.estimator import FeatureGradient, Observation, StretchBeginning
from sglm.dni.trust import Agreement
from sglm.model.state import LSTMState
from sglm.optim.optimizer import set_learning_rate
from sglm.text.batcher import Window
from sglm.train.learner import Learner
from sglm.train.window_decision import WindowDecision


class StepResult(NamedTuple):
    """The outcome of one training step. Its scalar tensors may still be pending on the device.

    Attributes:
        nll_nats: The negative log-likelihood in nats, summed over the window and this rank's lanes,
            without penalties or the injected term.
        tokens: The number of predictions in that sum.
        grad_norm: The norm of the model's whole gradient, in nats per token, before clipping.
        taken: False if the gradient was not finite, so that nothing was updated.
        agreement: The agreement of estimates with gradients observed on probes, if this step
            measured any.
    """

    nll_nats: Tensor
    tokens: int
    grad_norm: Tensor
    taken: Tensor
    agreement: Agreement | None


def train_step(
    learner: Learner, window: Window, decision: WindowDecision, *, learning_rate: float
) -> StepResult:
    """Updates the model and the estimator on one window, and carries the state on.

    Args:
        learner: The model and everything that trains with it, changed in place.
        window: The text, B lanes × T steps.
        decision: Whether to inject, to probe and to gauge.
        learning_rate: The learning rate of this step.
    """
    estimator, precision = learner.estimator, learner.precision
    # Before the forward pass: the loss may compute its gradients there, and needs the memory.
    learner.optimizer.zero_grad(set_to_none=True)
    _begin(learner, window)

    # 1. The incoming state becomes a leaf: backpropagation is truncated here.
    incoming, past_TB = _truncate(learner, window)
    estimator.enter_window(incoming)

    # 2. The model runs over the window.
    objective_nats, nll_nats, outgoing, features_TBH, tap_TBH = learner.window_pass(
        torch.cat((*past_TB, window.inputs_TB)), window.targets_TB, incoming
    )
    # If the loss is not finite, this makes the whole gradient NaN, so that the step is skipped.
    objective_nats = objective_nats * (1 + 0 * objective_nats.detach())
    mean_over = _mean_over(learner, window)
    scale = precision.loss_scale() / mean_over

    # 3. One backward pass: at the outgoing state, factor·ŝ(s), in the unit of the loss, enters it
    # in place of the gradient of all later losses.
    ends: tuple[Tensor, ...] = (precision.scale(objective_nats / mean_over),)
    gradients: tuple[Tensor | None, ...] = (None,)  # None stands for 1, d(loss)/d(loss)
    injected_BS = estimator.estimate(outgoing) if decision.inject else None
    if injected_BS is not None:
        ends += (*outgoing.hidden, *outgoing.cell)
        gradients += outgoing.parts_of(injected_BS * scale)
    torch.autograd.backward(ends, gradients)
    grad_norm, finite = precision.measure(learner.optimizer)

    # 4. The gradient that arrived at the leaf is the observed one, the estimator's target.
    agreement = estimator.end_window(
        Observation(
            gradient_BS=(incoming.packed_gradient() / scale).where(finite, math.nan),
            outgoing=outgoing,
            injected=decision.inject,
            probe=decision.probe,
            features=_feature_gradient(features_TBH, tap_TBH, window.targets_TB, scale=scale),
        )
    )

    _gauge(learner, window, incoming, injected_BS=injected_BS)

    # 5. The weights are updated, and the detached state is carried on.
    set_learning_rate(learner.optimizer, learning_rate)
    precision.update(learner.optimizer, grad_norm, finite, clip_norm=learner.clip_norm)
    learner.state = outgoing.detach().finite_or_zero()
    tokens = window.targets_TB.numel()
    return StepResult(nll_nats.detach(), tokens, grad_norm, finite, agreement)


def _begin(learner: Learner, window: Window) -> None:
    """Resets the state if the lanes begin here; shows the estimator a stretch that begins here."""
    if window.is_first:
        learner.state = learner.model.start_state(window.inputs_TB.shape[1])
        learner.past.clear()
        learner.estimator.begin_text()
    if window.coming is not None:
        steps = len(window.inputs_TB)
        beginning = StretchBeginning(learner.model, learner.state, window.coming, steps)
        learner.estimator.begin_stretch(beginning)


def _gauge(
    learner: Learner, window: Window, incoming: LSTMState, *, injected_BS: Tensor | None
) -> None:
    """Measures the injected gradient, if the window comes with the text that follows it."""
    if injected_BS is not None and learner.gauge is not None and window.ahead is not None:
        learner.gauge.observe(
            learner.model, incoming, window.inputs_TB, injected_BS=injected_BS, coming=window.ahead
        )


def _mean_over(learner: Learner, window: Window) -> int:
    """Returns the number of predictions that sums of nats are divided by: those of the window.

    For windows of random length it is the mean number: divided by its own length, a short window
    would give each of its tokens more weight.
    """
    if learner.random_window is None:
        return window.targets_TB.numel()
    return learner.random_window * window.targets_TB.shape[1]


def _truncate(learner: Learner, window: Window) -> tuple[LSTMState, list[Tensor]]:
    """Returns the leaf state where backpropagation ends, and the inputs from there to the window.

    With a horizon h > T the leaf is an earlier state, from which the past is read again with the
    current weights (BPTT(h; T): Williams & Peng 1990), so that the newest losses are backpropagated
    through the last h steps exactly. If the learner only renews its state, the past is read again
    without gradients, and the leaf is the state right before the window.
    """
    incoming = learner.past[0][0] if learner.past else learner.state
    past_TB = [inputs_TB for _, inputs_TB in learner.past]
    learner.past.append((learner.state, window.inputs_TB))
    if learner.renews_state and past_TB:
        with torch.no_grad():
            _, incoming = learner.model.features(torch.cat(past_TB), incoming)
        past_TB = []
    return incoming.as_leaf(), past_TB


def _feature_gradient(
    features_TBH: Tensor | None,
    tap_TBH: Tensor | None,
    targets_TB: Tensor,
    *,
    scale: Tensor | float,
) -> FeatureGradient | None:
    """Returns the gradient of the summed nats in the features; None if the pass did not keep it."""
    if features_TBH is None or tap_TBH is None:
        return None
    assert tap_TBH.grad is not None, "the backward pass comes first"
    return FeatureGradient(features_TBH.detach(), tap_TBH.grad / scale, targets_TB)
