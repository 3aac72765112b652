"""One window, one update: truncated backpropagation through time with a synthetic gradient.

`docs/algorithm.md` derives these five steps. Shapes: T time, B lanes, S coordinates of a state.
Losses are summed nats; a state gradient is per lane, not divided by B or T.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglm.dni.boundary import Agreement, Boundary
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.optim.optimizer import set_learning_rate
from sglm.optim.precision import Precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Window


@dataclass
class Learner:
    """Everything that a step changes.

    Attributes:
        model, optimizer, precision: of the language model.
        boundary: the synthesizer and its optimizer; None for plain truncation throughout.
        state: what the lanes carry into the next window.
        learning_rate: the peak, which the plan multiplies.
        clip_norm: cap on the gradient's norm, or None.
    """

    model: LSTMLanguageModel
    optimizer: torch.optim.Optimizer
    precision: Precision
    boundary: Boundary | None
    state: LSTMState
    learning_rate: float
    clip_norm: float | None

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
        taken: False when the gradient was not finite, so that nothing was updated.
        agreement: how good the synthesizer was, where a pure gradient was observed.
    """

    nll_nats: Tensor
    tokens: int
    grad_norm: Tensor
    taken: bool
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
        if boundary is not None:
            boundary.reset()

    # 1. The incoming state becomes a leaf: backpropagation is truncated here.
    incoming = learner.state.as_leaf()
    prediction = None if boundary is None else boundary.read(incoming)

    # 2. The model runs over the window.
    features_TBH, outgoing = model.features(window.inputs_TB, incoming)
    nll_nats = model.nll(features_TBH, window.targets_TB)

    # 3. One backward pass of (1/BT)·Σ[L + factor·⟨s, ŝ(s)⟩] injects the synthetic gradient exactly.
    objective_nats = nll_nats
    # Past the last window the state is dropped, so the true future gradient there is zero.
    pure = boundary is None or plan.mode is Mode.REAL or boundary.is_probe(step) or window.is_last
    if boundary is not None and not pure:
        objective_nats = nll_nats + boundary.surrogate(outgoing)
    learner.optimizer.zero_grad(set_to_none=True)
    scale = precision.loss_scale() / tokens
    precision.scale(objective_nats / tokens).backward()  # type: ignore[no-untyped-call]

    grad_norm, finite = precision.clip(
        learner.optimizer, list(model.parameters()), learner.clip_norm
    )

    # 4. What arrived at the leaf is what the future sends back: the synthesizer's target.
    agreement = None
    if boundary is not None and prediction is not None and finite:
        observed_BS = incoming.packed_gradient() / scale
        if bool(torch.isfinite(observed_BS).all()):
            agreement = boundary.learn(prediction, observed_BS, outgoing, pure)

    # 5. Update, and carry the detached state on.
    set_learning_rate(learner.optimizer, learner.rate(plan))
    precision.update(learner.optimizer, finite)
    learner.state = outgoing.detach()
    if not finite and not bool(torch.isfinite(outgoing.packed()).all()):
        learner.state = model.start_state(outgoing.batch)
        if boundary is not None:
            boundary.reset()
    return StepResult(nll_nats.detach(), tokens, grad_norm, finite, agreement)


def capture(learner: Learner) -> dict[str, Any]:
    """A tree of everything in the learner that steps change, to be saved."""
    boundary = learner.boundary
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.precision.scaler.state_dict(),
        "carried": {"hidden": learner.state.hidden, "cell": learner.state.cell},
        "boundary": None if boundary is None else boundary.state_dict(),
    }


def restore(learner: Learner, tree: dict[str, Any]) -> None:
    """Puts back what `capture` took."""
    device = learner.model.embedding.device
    learner.model.load_state_dict(tree["model"])
    learner.optimizer.load_state_dict(tree["optimizer"])
    learner.precision.scaler.load_state_dict(tree["scaler"])
    learner.state = LSTMState(
        tuple(part.to(device) for part in tree["carried"]["hidden"]),
        tuple(part.to(device) for part in tree["carried"]["cell"]),
    )
    if learner.boundary is not None:
        learner.boundary.load_state_dict(tree["boundary"])
