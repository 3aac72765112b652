"""The training of the adjoint's network q, towards the rows that the softmax has expected.

Shapes: T steps of a window, B lanes, H features, N tokens of a lesson.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sglm.dni.estimator import FeatureGradient
from sglm.dni.expected_row import ExpectedRow
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.softmax_loss import IGNORED
from sglm.optim.optimizer import step_on_loss
from sglm.runtime.calls import Calls
from sglm.runtime.ranks import Ranks

# q learns from about this many tokens of a window, so that long windows cost little more. It has to
# learn from every window because the rows of W change: trained on one window in eight, it explained
# as much of the gradient but improved perplexity by next to nothing (docs/log.md).
_LESSON_TOKENS = 128


class RowLessons:
    """The regression of q onto the rows that the training loss implies: ∂(nats)/∂h + W[y].

    Args:
        q: The network to train.
        model: The language model, which holds the rows W[y].
        learning_rate: Learning rate of q's own Adam.
        calls: How the computation of a lesson is called.
        ranks: The processes that share the lanes.

    Attributes:
        count: Number of lessons so far.
    """

    def __init__(
        self,
        q: ExpectedRow,
        *,
        model: LSTMLanguageModel,
        learning_rate: float,
        calls: Calls,
        ranks: Ranks,
    ) -> None:
        self.q = q
        self.model = model
        self.calls = calls
        self.ranks = ranks
        self.count = 0
        self.optimizer = torch.optim.Adam(q.parameters(), lr=learning_rate, fused=True)

    def learn(self, features: FeatureGradient) -> None:
        """Takes one optimizer step for q, on some of the window's tokens."""
        # Every `stride`-th step, starting one step later each time. All lanes are used, so that the
        # lesson is the same for any number of processes.
        steps, lanes = features.targets_TB.shape
        stride = min(steps, math.ceil(steps * lanes * self.ranks.count / _LESSON_TOKENS))
        taken = slice(self.count % stride, None, stride)
        self.count += 1
        self.calls.run("lesson", self._learn, *(each[taken] for each in features))

    def _learn(self, features_TBH: Tensor, gradient_TBH: Tensor, targets_TB: Tensor) -> Tensor:
        """Takes the step; returns the loss before it."""
        q, targets_N = self.q, targets_TB.flatten()
        features_NH = features_TBH.flatten(0, 1).to(q.unit)
        gradient_NH = gradient_TBH.flatten(0, 1).to(q.unit)
        expected_NH = gradient_NH - self.model.known_residual(targets_N).to(q.unit)
        has_target_N = targets_N != IGNORED
        loss, finite = q.observe(
            features_NH,
            expected_NH,
            has_target_N,
            clusters_N=self.model.clusters_of(targets_N),
            ranks=self.ranks,
        )
        step_on_loss(self.optimizer, loss, finite, ranks=self.ranks)
        return loss.detach()

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Restores what the optimizer's `state_dict` returned."""
        self.optimizer.load_state_dict(state)
        self.calls.forget()  # the optimizer's moments have moved in memory
