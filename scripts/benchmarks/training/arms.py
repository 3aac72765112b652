"""The arms of scripts/bench: the ordinary PyTorch loop, and sglm with and without a synthesizer.

All arms step over windows of the same random text. An arm also lists which of the functions that it
calls belong to which part of a step (`parts` times them from outside).
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from scripts.benchmarks.training.case import (
    FEWEST_WINDOWS,
    Arm,
    Ids,
    Patch,
    Place,
    Size,
    random_text,
)
from scripts.benchmarks.training.plain import PlainArm
from sglm.config import Config, parse_config
from sglm.dni.estimator import PlainTruncation
from sglm.optim.precision import make_precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Batcher, Window
from sglm.train.build import (
    build_decision_rule,
    build_learner,
    build_window_pass,
    lookahead_steps,
    stretch_windows,
)
from sglm.train.step import train_step

# Without a synthesizer, while it learns, and while its predictions are injected.
TURNS = {"real": Mode.REAL, "learning": Mode.REAL, "synthetic": Mode.SYNTHETIC}


class SglmArm:
    """sglm's own step, its parts built as `sglm train` builds them.

    Args:
        size, place: What is trained, and where.
        ids_N: The text.
        kind: Kind of the synthesizer. None: plain truncation.
        turns: One or more of `TURNS`, which alternate block by block.
        horizon: Steps through which every window is backpropagated. None: the window.
    """

    def __init__(
        self,
        size: Size,
        place: Place,
        ids_N: Ids,
        kind: str | None,
        *turns: str,
        horizon: int | None = None,
    ) -> None:
        device = torch.device(place.device)
        config = sglm_config(size, kind, horizon, cuda_graph=place.cuda_graph)
        counts_V = np.bincount(ids_N[: 2**20], minlength=size.vocab_size)
        with device:  # weights are drawn here: on a CPU large ones would take seconds
            self.learner = build_learner(config, counts_V, make_precision(place.precision, device))
        self.rule = build_decision_rule(config)
        self.batcher = Batcher(
            ids_N,
            batch=size.batch,
            window=size.window,
            bos_id=0,
            stretch=stretch_windows(config),
            lookahead=lookahead_steps(config),
        )
        self.block = max(FEWEST_WINDOWS, self.batcher.stretch)
        self.estimator = self.learner.estimator
        # A pass that does not return features costs a little less.
        self.passes = {
            keeps_features: build_window_pass(config, self.learner.model, keeps_features)
            for keeps_features in (False, True)
        }
        self.device, self.number, self.turns = device, 0, turns
        if horizon is not None:  # as if it had already read the windows of a horizon
            learner, inputs_TB = self.learner, self.read().inputs_TB
            learner.past.extend([(learner.state, inputs_TB)] * (learner.past.maxlen or 0))
            self.number = 1

    def read(self) -> Window:
        """Returns the next window, on the model's device."""
        return self.batcher.at(self.number).to(self.device)

    def step(self, turn: str | None = None) -> None:
        """Trains on a window; a given turn, one of `TURNS`, must be that of the whole block."""
        turn = turn or self.turns[self.number // self.block % len(self.turns)]
        learner, window = self.learner, self.read()
        learner.estimator = PlainTruncation() if turn == "real" else self.estimator
        learner.window_pass = self.passes[learner.estimator.wants_features]
        plan = StepPlan(lr_factor=1.0, mode=TURNS[turn], cycle=0)
        decision = self.rule.decide(self.number, plan, window)
        train_step(learner, window, decision, learning_rate=learner.rate(plan))
        self.number += 1

    def patches(self) -> list[Patch]:
        learner, estimator = self.learner, self.estimator
        patches = [
            Patch(self, "read", "data"),
            Patch(learner.model, "embed", "forward"),
            Patch(learner.model, "outputs", "forward"),
            Patch(learner.model, "drop_and_penalize", "forward"),
            Patch(learner.model, "nll", "loss"),
            Patch(torch.autograd, "backward", "backward"),
            Patch(learner.precision, "measure", "clip"),
            Patch(learner.precision, "update", "optimizer"),
            Patch(learner.optimizer, "zero_grad", "optimizer"),
        ]
        if not isinstance(estimator, PlainTruncation):
            public = [name for name in vars(type(estimator)) if not name.startswith("_")]
            methods = [name for name in public if callable(getattr(estimator, name))]
            patches += [Patch(estimator, name, "synthesizer") for name in methods]
        return patches


def sglm_config(
    size: Size, kind: str | None, horizon: int | None = None, *, cuda_graph: bool = False
) -> Config:
    """Returns the default configuration at that size."""
    values: dict[str, dict[str, Any]] = {
        "model": {"layers": size.layers, "hidden": size.hidden},
        "train": {"batch": size.batch, "window": size.window, "cuda_graph": cuda_graph},
        "schedule": {"mode": "real" if kind is None else "alternating"},
    }
    if kind is not None:
        values["synthesizer"] = {"kind": kind}
    if horizon is not None:
        values["train"]["horizon"] = horizon
    return parse_config(values, "bench")


KINDS = ("adjoint", "mlp", "recurrent", "linear")

Build = Callable[[Size, Place, Ids, int | None], Arm]


def _plain(size: Size, place: Place, ids_N: Ids, horizon: int | None) -> Arm:
    return PlainArm(size, place, ids_N)


def _sglm(kind: str | None, *turns: str) -> Build:
    return lambda size, place, ids_N, horizon: SglmArm(
        size, place, ids_N, kind, *turns, horizon=horizon
    )


ARMS: dict[str, Build] = {
    "plain": _plain,
    "plain prepared": _plain,  # in a process prepared as that of sglm
    "real": _sglm(None, "real"),
    **{f"learning {kind}": _sglm(kind, "learning") for kind in KINDS},
    **{f"synthetic {kind}": _sglm(kind, "synthetic") for kind in KINDS},
    **{f"alternating {kind}": _sglm(kind, "learning", "synthetic") for kind in KINDS},
}


def has_synthesizer(name: str) -> bool:
    """Returns whether that arm has a synthesizer, and so can take every turn."""
    return name.split()[-1] in KINDS


def build_arm(
    name: str, size: Size, place: Place, text_tokens: int | None = None, horizon: int | None = None
) -> Arm:
    """Builds a fresh arm; all arms of one size read the same text.

    Args:
        name: One of `ARMS`.
        size, place: What is trained, and where.
        text_tokens: Number of tokens of the text. None: the default of `random_text`.
        horizon: Steps of the exact gradient, for the arm `real`. None: the window's.
    """
    with TemporaryDirectory() as folder:  # a mapped file stays readable after its deletion
        ids_N = random_text(size, Path(folder), text_tokens)
        return ARMS[name](size, place, ids_N, horizon)
