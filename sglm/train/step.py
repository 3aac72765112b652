"""One window, one update: truncated backpropagation through time with a synthetic gradient.

`docs/algorithm.md` derives these five steps. Shapes: T time, B lanes, S coordinates of a state.
Losses are summed nats; a state gradient is per lane, not divided by B or T.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sglm.config import RegularizerConfig
from sglm.dni.boundary import Boundary
from sglm.dni.exact import future_gradients
from sglm.dni.trust import Agreement
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.optim.optimizer import set_learning_rate
from sglm.optim.precision import Precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.runtime.ranks import ALONE, Ranks
from sglm.text.batcher import Window
from sglm.train.truncation import compensated_outputs

RunsWindow = Callable[[Tensor, Tensor, LSTMState], tuple[Tensor, Tensor, LSTMState]]


class WindowPass(nn.Module):
    """The model's pass over one window, from inputs to the objective.

    A module of its own, so that DistributedDataParallel can average the gradients of its backward
    pass over the ranks.

    Args:
        model: of language.
        regularizer: penalties on the last layer's outputs.
        random_window: mean length of randomly truncated windows, or None where it is fixed.
    """

    def __init__(
        self, model: LSTMLanguageModel, regularizer: RegularizerConfig, random_window: int | None
    ) -> None:
        super().__init__()
        self.model = model
        self.regularizer = regularizer
        self.random_window = random_window

    def forward(
        self, inputs_TB: Tensor, targets_TB: Tensor, incoming: LSTMState
    ) -> tuple[Tensor, Tensor, LSTMState]:
        """`(objective in nats, nll_nats, outgoing)`, both summed over the window and its lanes.

        Args:
            inputs_TB: token ids; there may be more of them than targets, at the beginning.
            targets_TB: of the last inputs.
            incoming: the state before the first input.
        """
        embedded_TBE, output_weight = self.model.embed(inputs_TB)
        if self.random_window is None:
            outputs_TBH, outgoing = self.model.outputs(embedded_TBE, incoming)
        else:
            outputs_TBH, outgoing = compensated_outputs(
                self.model, embedded_TBE, incoming, self.random_window
            )
        outputs_TBH = outputs_TBH[-len(targets_TB) :]
        features_TBH, penalty = self.model.drop_and_penalize(
            outputs_TBH, self.regularizer.activation, self.regularizer.temporal
        )
        nll_nats = self.model.nll(features_TBH, targets_TB, output_weight=output_weight)
        return nll_nats + targets_TB.numel() * penalty, nll_nats, outgoing


@dataclass
class Learner:
    """Everything that a step changes.

    Attributes:
        model, optimizer, precision: of the language model.
        window_pass: the model's pass over a window; averages gradients where there are ranks.
        boundary: the synthesizer and its optimizer; None for plain truncation throughout.
        state: what the lanes carry into the next window.
        learning_rate: the peak, which the plan multiplies.
        clip_norm: cap on the gradient's norm, or None.
        past: the windows before the next one that are read again for a longer exact gradient,
            each with the state before it; holds none unless given a length.
        random_window: mean length of randomly truncated windows, or None where it is fixed.
        taught_every: stretches from one exact gradient for the synthesizer to the next, or None.
        ranks: the processes that share the lanes; what is here is this one's.
    """

    model: LSTMLanguageModel
    window_pass: RunsWindow
    optimizer: torch.optim.Optimizer
    precision: Precision
    boundary: Boundary | None
    state: LSTMState
    learning_rate: float
    clip_norm: float | None
    past: deque[tuple[LSTMState, Tensor]] = field(default_factory=lambda: deque(maxlen=0))
    random_window: int | None = None
    taught_every: int | None = None
    ranks: Ranks = ALONE

    def rate(self, plan: StepPlan) -> float:
        """The learning rate of a step with that plan."""
        return self.learning_rate * plan.lr_factor


@dataclass(frozen=True)
class StepResult:
    """What one step did. Tensors are scalars that nobody has waited for yet.

    Attributes:
        nll_nats: summed over the window and this rank's lanes, without what was injected.
        tokens: how many predictions that were.
        grad_norm: of the whole model's gradient of nats per token, before clipping.
        taken: false when the gradient was not finite, so that nothing was updated.
        agreement: how good the synthesizer was on the probes of the stretch that ended here.
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
    # Now, so that the loss, which makes its gradients in the forward pass, finds the memory free.
    learner.optimizer.zero_grad(set_to_none=True)
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
    objective_nats, nll_nats, outgoing = learner.window_pass(
        torch.cat((*past_TB, window.inputs_TB)), window.targets_TB, incoming
    )

    # A loss that is not finite makes the whole gradient so, and then the step is not taken.
    objective_nats = objective_nats * (1 + 0 * objective_nats.detach())

    # Random windows all weigh the same: divided by their own length, short ones would count more.
    mean_over = tokens if learner.random_window is None else learner.random_window * outgoing.batch
    scale = precision.loss_scale() / mean_over

    # 3. One backward pass: factor·ŝ(s) enters it at the outgoing state, as ∂/∂s of what is to come,
    # and so injects the synthetic gradient exactly, in the unit of the loss.
    # Past the last window the state is dropped, so the true future gradient there is zero.
    ends: tuple[Tensor, ...] = (precision.scale(objective_nats / mean_over),)
    gradients: tuple[Tensor | None, ...] = (None,)  # of itself: one
    probe = boundary is not None and (boundary.is_probe(step) or window.is_last)
    pure = probe or plan.mode is Mode.REAL
    if boundary is not None and not pure:
        ends += (*outgoing.hidden, *outgoing.cell)
        gradients += outgoing.parts_of(boundary.synthesize(outgoing) * scale)
    torch.autograd.backward(ends, gradients)

    grad_norm, finite = precision.measure(learner.optimizer)

    # 4. What arrived at the leaf is what the future sends back: the synthesizer's target.
    agreement = None
    if boundary is not None and reading is not None:
        observed_BS = (incoming.packed_gradient() / scale).where(finite, math.nan)
        boundary.observe(reading, observed_BS, outgoing, pure, probe)
        agreement = boundary.end_window(window.is_last)

    # 5. Update, and carry the detached state on.
    set_learning_rate(learner.optimizer, learner.rate(plan))
    precision.update(learner.optimizer, grad_norm, finite, clip_norm=learner.clip_norm)
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
    """A tree of everything in the learner that steps change, to be saved.

    It is of all ranks' lanes, and all of them must call this.
    """
    boundary, every = learner.boundary, learner.ranks.gather
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.precision.scaler.state_dict(),
        "carried": _every_lane(learner.state, learner.ranks),
        "past": [
            {**_every_lane(state, learner.ranks), "inputs": every(inputs_TB, dim=1)}
            for state, inputs_TB in learner.past
        ],
        "boundary": None if boundary is None else boundary.state_dict(),
    }


def restore(learner: Learner, tree: dict[str, Any]) -> None:
    """Puts back what `capture` took."""
    device, own = learner.model.embedding.device, learner.ranks.own
    learner.model.load_state_dict(tree["model"])
    learner.optimizer.load_state_dict(tree["optimizer"])
    learner.precision.scaler.load_state_dict(tree["scaler"])
    learner.state = _own_lanes(tree["carried"], learner.ranks, device)
    learner.past.extend(
        (_own_lanes(each, learner.ranks, device), own(each["inputs"], dim=1).to(device))
        for each in tree["past"]
    )
    if learner.boundary is not None:
        learner.boundary.load_state_dict(tree["boundary"])


def _every_lane(state: LSTMState, ranks: Ranks) -> dict[str, list[Tensor]]:
    return {
        "hidden": [ranks.gather(part) for part in state.hidden],
        "cell": [ranks.gather(part) for part in state.cell],
    }


def _own_lanes(tree: dict[str, Any], ranks: Ranks, device: torch.device) -> LSTMState:
    return LSTMState(
        tuple(ranks.own(part).to(device) for part in tree["hidden"]),
        tuple(ranks.own(part).to(device) for part in tree["cell"]),
    )
