"""A run's model together with the state-gradient estimator that was trained beside it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.subjects import Subject
from sglm.config import Config
from sglm.dni.estimator import PlainTruncation, StateGradientEstimator
from sglm.errors import InputError
from sglm.model.folder import read_card
from sglm.model.language_model import LSTMLanguageModel
from sglm.optim.precision import make_precision
from sglm.storage.checkpoint import complete_checkpoints
from sglm.storage.names import CHECKPOINT_SUMS
from sglm.train.build import build_learner, lookahead_steps, stretch_windows
from sglm.train.learner import restore
from sglm.train.run_folder import RunFolder
from sglm.train.starting_point import with_cutoffs_of

_FINISH = "; continue the run with `sglm train`, and analyse it when it is done"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model of a run, in evaluation mode, and its estimator.

    Attributes:
        model: Model of the newest checkpoint, which the estimator belongs to; for a snapshot, or
            without a checkpoint, the subject's own.
        config: The run's configuration.
        estimator: Estimator of state gradients. None: the run has none, or none was kept for
            this model.
        missing: Reason why there is no estimator; empty if there is one.
        moments: Adam's running means of squared gradients by parameter name, without bias
            correction, and the number of steps. None: unknown.
    """

    model: LSTMLanguageModel
    config: Config
    estimator: StateGradientEstimator | None
    missing: str
    moments: tuple[Mapping[str, Tensor], int] | None

    @property
    def stretch(self) -> int:
        """The number of windows of a stretch."""
        return stretch_windows(self.config)

    @property
    def lookahead(self) -> int:
        """The number of steps past a stretch that the estimator is shown."""
        return lookahead_steps(self.config) or 0


def load_trained(subject: Subject) -> Trained:
    """Loads the model as training left it, and its estimator if one was kept.

    Raises:
        InputError: The subject's path is not a run, the checkpoint is damaged or does not fit the
            configuration, or the model is damaged.
    """
    config = subject.config()
    state = None
    if _is_newest(subject):
        checkpoint = RunFolder(subject.run).load_checkpoint()
        state = None if checkpoint is None else checkpoint.state
    if state is None:
        missing = "a snapshot keeps no synthesizer" if not _is_newest(subject) else "no checkpoint"
        model = subject.load()
        return Trained(model=model, config=config, estimator=None, missing=missing, moments=None)
    precision = make_precision("fp32", torch.device("cpu"))
    shape = read_card(subject.folder).model_shape()
    # The token counts may be dummies: what training derived from them is known already, the
    # cutoffs from the model's shape and the rest from the checkpoint.
    config = with_cutoffs_of(shape, config)
    learner = build_learner(config, np.ones(shape.vocab_size, dtype=np.int64), precision)
    try:
        restore(learner, state["learner"])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{subject.run}: its checkpoint does not fit its configuration ({error}){_FINISH}"
        ) from None
    model = learner.model.eval()
    is_real = isinstance(learner.estimator, PlainTruncation)
    return Trained(
        model=model,
        config=config,
        estimator=None if is_real else learner.estimator,
        missing="trained with real gradients" if is_real else "",
        moments=_moments(model, learner.optimizer),
    )


def trained_fingerprint(subject: Subject) -> str:
    """Returns a hash of all files that `load_trained` reads."""
    digest = hashlib.sha256(subject.fingerprint().encode())
    run = RunFolder(subject.run)
    if _is_newest(subject):
        for path in complete_checkpoints(run.checkpoints)[-1:]:
            digest.update((path / CHECKPOINT_SUMS).read_bytes())
    digest.update(run.config.read_bytes())
    return digest.hexdigest()


def _is_newest(subject: Subject) -> bool:
    """Returns whether the subject is the best model of a run, not a snapshot or a lone model."""
    return subject.folder == RunFolder(subject.run).best_model


def _moments(
    model: LSTMLanguageModel, optimizer: torch.optim.Optimizer
) -> tuple[Mapping[str, Tensor], int] | None:
    squares: dict[str, Tensor] = {}
    steps = 0
    for name, parameter in model.named_parameters():
        kept: dict[str, Any] = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in kept:
            return None
        squares[name] = kept["exp_avg_sq"]
        steps = int(kept["step"])
    return squares, steps
