"""One window, one update: truncated backpropagation through time with a synthetic gradient.

`docs/algorithm.md` derives these five steps. Shapes: T time, B lanes, S coordinates of a state.
Losses are summed nats; a state gradient is per lane, not divided by B or T.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sglm.config import RegularizerConfig
from sglm.dni.boundary import Boundary
from sglm.dni.trust import Agreement
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.regularizer import activation_penalty
from sglm.model.state import LSTMState
from sglm.optim.optimizer import set_learning_rate
from sglm.optim.precision import Precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Window
from sglm.train.exact import future_gradients
from sglm.train.truncation import compensated_outputs


@dataclass
class Learner:
    """Everything that a step changes.

    Attributes:
        model, optimizer, precision: of the language model.
        boundary: the synthesizer and its optimizer; None for plain truncation throughout.
        state: what the lanes carry into the next window.
        learning_rate: the peak, which the plan multiplies.
        clip_norm: cap on the gradient's norm, or None.
        regularizer: penalties on the last layer's outputs.
        past: the windows before the next one that are read again for a longer exact gradient,
            each with the state before it; holds none unless given a length.
        random_window: mean length of randomly truncated windows, or None where it is fixed.
        taught_every: stretches from one exact gradient for the synthesizer to the next, or None.
    """

    model: LSTMLanguageModel
    optimizer: torch.optim.Optimizer
    precision: Precision
    boundary: Boundary | None
    state: LSTMState
    learning_rate: float
    clip_norm: float | None
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    past: deque[tuple[LSTMState, Tensor]] = field(default_factory=lambda: deque(maxlen=0))
    random_window: int | None = None
    taught_every: int | None = None

    def rate(self, plan: StepPlan) -> float:
        """The learning rate of a step with that plan."""
        return self.learning_rate * plan.lr_factor


@dataclass(frozen=True)
class StepResult:
    """What one step did. Tensors are scalars that nobody has waited for yet.

    Attributes:
        nll_nats: summed over the window and its lanes, without the surrogate term.
        tokens: how many predictions that were.
        grad_norm: of the whole model's gradient of nats per token, before clipping.
        taken: false when the gradient was not finite, so that nothing was updated.
        agreement: how good the synthesizer was, where a pure gradient was observed.
    """

    nll_nats: Tensor
    tokens: int
    grad_norm: Tensor
    taken: Tensor
    agreement: Agreement | None


def train_step(learner: Learner, window: Window, plan: StepPlan, step: int) -> StepResult:
    """Learns from one window and carries the state on.

    Args:
        learner: changed in place.
        window: B lanes × T steps.
        plan: rate factor and mode.
        step: its number, which decides whether it is a probe.
    """
    model, boundary, precision = learner.model, learner.boundary, learner.precision
    tokens = window.targets_TB.numel()
    if window.is_first:
        learner.state = model.start_state(window.inputs_TB.shape[1])
        learner.past.clear()
        if boundary is not None:
            boundary.reset()
    if boundary is not None and window.upcoming is not None:
        _look_ahead(learner, boundary, window, step)

    # 1. The incoming state becomes a leaf: backpropagation is truncated here.
    incoming, past_TB = _truncate(learner, window)
    reading = None if boundary is None else boundary.read(incoming)

    # 2. The model runs over the window.
    outputs_TBH, outgoing = _outputs(learner, torch.cat((*past_TB, window.inputs_TB)), incoming)
    outputs_TBH = outputs_TBH[-len(window.inputs_TB) :]
    features_TBH = model.drop_outputs(outputs_TBH)
    nll_nats = model.nll(features_TBH, window.targets_TB)

    # 3. One backward pass of (1/BT)·Σ[L + factor·⟨s, ŝ(s)⟩] injects the synthetic gradient exactly.
    weights = learner.regularizer
    objective_nats = nll_nats + tokens * activation_penalty(
        outputs_TBH, features_TBH, weights.activation, weights.temporal
    )
    # Past the last window the state is dropped, so the true future gradient there is zero.
    pure = boundary is None or plan.mode is Mode.REAL or boundary.is_probe(step) or window.is_last
    if boundary is not None and not pure:
        objective_nats = objective_nats + boundary.surrogate(outgoing)
    learner.optimizer.zero_grad(set_to_none=True)
    # Random windows all weigh the same: divided by their own length, short ones would count more.
    mean_over = tokens if learner.random_window is None else learner.random_window * outgoing.batch
    scale = precision.loss_scale() / mean_over
    precision.scale(objective_nats / mean_over).backward()  # type: ignore[no-untyped-call]

    grad_norm, finite = precision.clip(
        learner.optimizer, list(model.parameters()), learner.clip_norm
    )

    # 4. What arrived at the leaf is what the future sends back: the synthesizer's target.
    agreement = None
    if boundary is not None and reading is not None:
        observed_BS = (incoming.packed_gradient() / scale).where(finite, math.nan)
        agreement = boundary.observe(reading, observed_BS, outgoing, pure)
        boundary.end_window(window.is_last)

    # 5. Update, and carry the detached state on.
    set_learning_rate(learner.optimizer, learner.rate(plan))
    precision.update(learner.optimizer, finite)
    learner.state = outgoing.detach().finite_or_zero()
    return StepResult(nll_nats.detach(), tokens, grad_norm, finite, agreement)


def _truncate(learner: Learner, window: Window) -> tuple[LSTMState, list[Tensor]]:
    """The state at which backpropagation ends, as a leaf, and the inputs between it and the window.

    With a longer horizon that is an earlier state, from which the past is read again with today's
    weights (BPTT(h; T): Williams & Peng 1990): the newest losses see the last h steps exactly.
    """
    incoming = learner.past[0][0] if learner.past else learner.state
    past_TB = [inputs_TB for _, inputs_TB in learner.past]
    learner.past.append((learner.state, window.inputs_TB))
    return incoming.as_leaf(), past_TB


def _outputs(learner: Learner, inputs_TB: Tensor, incoming: LSTMState) -> tuple[Tensor, LSTMState]:
    if learner.random_window is None:
        return learner.model.outputs(inputs_TB, incoming)
    return compensated_outputs(learner.model, inputs_TB, incoming, learner.random_window)


def _look_ahead(learner: Learner, boundary: Boundary, window: Window, step: int) -> None:
    """A stretch begins: the synthesizer reads it, and now and then is taught the exact gradient."""
    upcoming, steps = window.upcoming, len(window.inputs_TB)
    assert upcoming is not None
    if boundary.token_features is not None:
        boundary.look_ahead(*upcoming, steps)
    if learner.taught_every and step // boundary.stretch % learner.taught_every == 0:
        boundaries = min(boundary.stretch, len(upcoming.inputs_CB) // steps)
        boundary.teach(*future_gradients(learner.model, learner.state, upcoming, steps, boundaries))


def capture(learner: Learner) -> dict[str, Any]:
    """A tree of everything in the learner that steps change, to be saved."""
    boundary = learner.boundary
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.precision.scaler.state_dict(),
        "carried": {"hidden": learner.state.hidden, "cell": learner.state.cell},
        "past": [
            {"hidden": state.hidden, "cell": state.cell, "inputs": inputs_TB}
            for state, inputs_TB in learner.past
        ],
        "boundary": None if boundary is None else boundary.state_dict(),
    }


def restore(learner: Learner, tree: dict[str, Any]) -> None:
    """Puts back what `capture` took."""
    device = learner.model.embedding.device
    learner.model.load_state_dict(tree["model"])
    learner.optimizer.load_state_dict(tree["optimizer"])
    learner.precision.scaler.load_state_dict(tree["scaler"])
    learner.state = _placed_state(tree["carried"], device)
    learner.past.extend(
        (_placed_state(each, device), each["inputs"].to(device)) for each in tree["past"]
    )
    if learner.boundary is not None:
        learner.boundary.load_state_dict(tree["boundary"])


def _placed_state(tree: dict[str, Any], device: torch.device) -> LSTMState:
    return LSTMState(
        tuple(part.to(device) for part in tree["hidden"]),
        tuple(part.to(device) for part in tree["cell"]),
    )
