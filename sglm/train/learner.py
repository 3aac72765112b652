"""Everything that a training step changes; and how it is saved and put back."""

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
    """What learns, and what it learns with.

    Attributes:
        model, optimizer, precision: of the language model.
        window_pass: the model's pass over a window; averages gradients where there are ranks.
        estimator: of the state gradients at the windows' ends.
        state: what the lanes carry into the next window.
        gauge: of what is injected; None where nothing is.
        learning_rate: the peak, which the schedule's plan multiplies.
        weight_decay: of matrices, where the plan has one.
        average: of the weights, or None.
        clip_norm: cap on the gradient's norm, or None.
        past: the windows before the next one that are read again for a longer exact gradient,
            each with the state before it; holds none unless given a length.
        renews_state: read the past again for the state before the window alone.
        random_window: mean length of randomly truncated windows, or None where it is fixed.
        ranks: the processes that share the lanes; what is here is this one's.
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
    def shown(self) -> LSTMLanguageModel:
        """The model that is validated and saved."""
        averaged = None if self.average is None else self.average.model
        return self.model if averaged is None else averaged

    def rate(self, plan: StepPlan) -> float:
        """The learning rate of a step with that plan."""
        return self.learning_rate * plan.lr_factor

    def decay(self, plan: StepPlan) -> float:
        """The weight decay of a step with that plan."""
        return self.weight_decay if plan.decays else 0.0


def capture(learner: Learner) -> dict[str, Any]:
    """A tree of everything in the learner that steps change, to be saved.

    It is of all ranks' lanes, and all of them must call this.
    """
    gather = learner.ranks.gather
    return {
        "model": learner.model.state_dict(),
        "average": None if learner.average is None else learner.average.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.precision.scaler.state_dict(),
        "carried": _every_lane(learner.state, learner.ranks),
        "past": [
            {**_every_lane(state, learner.ranks), "inputs": gather(inputs_TB, dim=1)}
            for state, inputs_TB in learner.past
        ],
        "estimator": learner.estimator.state_dict(),
        "gauge": None if learner.gauge is None else learner.gauge.state_dict(),
    }


def restore(learner: Learner, tree: dict[str, Any]) -> None:
    """Puts back what `capture` took."""
    device, own = learner.model.embedding.device, learner.ranks.own
    learner.model.load_state_dict(tree["model"])
    if learner.average is not None:
        learner.average.load_state_dict(tree["average"])
    learner.optimizer.load_state_dict(tree["optimizer"])
    learner.precision.scaler.load_state_dict(tree["scaler"])
    learner.state = _own_lanes(tree["carried"], learner.ranks, device)
    learner.past.extend(
        (_own_lanes(each, learner.ranks, device), own(each["inputs"], dim=1).to(device))
        for each in tree["past"]
    )
    learner.estimator.load_state_dict(tree["estimator"])
    if learner.gauge is not None and tree["gauge"] is not None:  # one lane a process has none
        learner.gauge.load_state_dict(tree["gauge"])


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
