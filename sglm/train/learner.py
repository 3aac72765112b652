"""Everything that a training step uses and changes, and how it is saved and restored."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sglm.dni.estimator import PlainTruncation, StateGradientEstimator
from sglm.dni.gauge import Gauge
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.optim.averaging import WeightAverage
from sglm.optim.precision import Precision
from sglm.optim.schedule import StepPlan
from sglm.runtime.ranks import ALONE, Ranks
from sglm.train.window_pass import RunsWindow


@dataclass(kw_only=True)
class Learner:
    """The model in training, and everything that it is trained with.

    Attributes:
        model, optimizer, precision: The language model, its optimizer, the types it computes in.
        window_pass: The model's pass over a window, which averages gradients over several ranks.
        state: The state that the lanes carry into the next window.
        learning_rate: The peak rate, which the schedule multiplies by a factor.
        estimator: The estimator of the state gradients at the windows' ends.
        gauge: The gauge of the injected gradients; None if nothing is injected, or if this process
            has too few lanes for it.
        weight_decay: The weight decay of matrices, in the steps whose plan lets weights decay.
        average: The running mean of the weights, or None.
        clip_norm: The cap on the gradient's norm, or None.
        past: The inputs of previous windows, each with the state before it, that are read again
            for a longer exact gradient. Its maximum length is 0 unless there is a horizon.
        renews_state: Whether the past is read again only to renew the state before the window.
        random_window: The mean length of randomly truncated windows; None if the length is fixed.
        ranks: The processes that share the lanes; the lanes here are those of this process.
    """

    model: LSTMLanguageModel
    window_pass: RunsWindow
    optimizer: torch.optim.Optimizer
    precision: Precision
    state: LSTMState
    learning_rate: float
    estimator: StateGradientEstimator = field(default_factory=PlainTruncation)
    gauge: Gauge | None = None
    weight_decay: float = 0.0
    average: WeightAverage | None = None
    clip_norm: float | None = None
    past: deque[tuple[LSTMState, Tensor]] = field(default_factory=lambda: deque(maxlen=0))
    renews_state: bool = False
    random_window: int | None = None
    ranks: Ranks = ALONE

    @property
    def evaluated_model(self) -> LSTMLanguageModel:
        """The model that is validated and saved: that of averaged weights, if there is one."""
        averaged = None if self.average is None else self.average.model
        return self.model if averaged is None else averaged

    def rate(self, plan: StepPlan) -> float:
        """Returns the learning rate of a step with this plan."""
        return self.learning_rate * plan.lr_factor

    def decay(self, plan: StepPlan) -> float:
        """Returns the weight decay of a step with this plan."""
        return self.weight_decay if plan.decays else 0.0


def capture(learner: Learner) -> dict[str, Any]:
    """Returns everything in the learner that steps change, as a tree to be saved.

    The tree covers the lanes of all ranks, and all ranks must call this together.
    """
    gather = learner.ranks.gather
    return {
        "model": learner.model.state_dict(),
        "average": None if learner.average is None else learner.average.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.precision.scaler.state_dict(),
        "carried": _gather_state(learner.state, learner.ranks),
        "past": [
            {**_gather_state(state, learner.ranks), "inputs": gather(inputs_TB, dim=1)}
            for state, inputs_TB in learner.past
        ],
        "estimator": learner.estimator.state_dict(),
        "gauge": None if learner.gauge is None else learner.gauge.state_dict(),
    }


def restore(learner: Learner, tree: dict[str, Any]) -> None:
    """Restores what `capture` returned."""
    device, own = learner.model.embedding.device, learner.ranks.own
    learner.model.load_state_dict(tree["model"])
    if learner.average is not None:
        learner.average.load_state_dict(tree["average"])
    learner.optimizer.load_state_dict(tree["optimizer"])
    learner.precision.scaler.load_state_dict(tree["scaler"])
    learner.state = _own_state(tree["carried"], learner.ranks, device)
    learner.past.clear()
    learner.past.extend(
        (_own_state(each, learner.ranks, device), own(each["inputs"], dim=1).to(device))
        for each in tree["past"]
    )
    learner.estimator.load_state_dict(tree["estimator"])
    if learner.gauge is not None and tree["gauge"] is not None:  # with too few lanes
        learner.gauge.load_state_dict(tree["gauge"])


def _gather_state(state: LSTMState, ranks: Ranks) -> dict[str, list[Tensor]]:
    return {
        "hidden": [ranks.gather(part) for part in state.hidden],
        "cell": [ranks.gather(part) for part in state.cell],
    }


def _own_state(tree: dict[str, Any], ranks: Ranks, device: torch.device) -> LSTMState:
    return LSTMState(
        tuple(ranks.own(part).to(device) for part in tree["hidden"]),
        tuple(ranks.own(part).to(device) for part in tree["cell"]),
    )
