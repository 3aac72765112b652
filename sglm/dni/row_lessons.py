"""How the adjoint's q learns: one step towards the rows that the softmax has expected.

Shapes: T steps of a window, B lanes, H features, N tokens that are learned from.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sglm.dni.estimator import FeatureGradient
from sglm.dni.expected_row import ExpectedRow
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.softmax_loss import IGNORED
from sglm.optim.optimizer import step_where_finite
from sglm.runtime.calls import Calls
from sglm.runtime.ranks import Ranks

# q learns from about so many tokens of a window, so that long windows cost little more. It has to
# learn from every window, since the rows of W move: trained on one window in eight it explained as
# much of the gradient and improved perplexity by next to nothing (docs/log.md).
_LESSON_TOKENS = 128


class RowLessons:
    """Regresses q onto what the training loss has computed: ∂(nats)/∂h + W[y].

    Args:
        q: what learns.
        model: of language, whose rows W[y] are.
        learning_rate: of q's own Adam.
        calls: how to call what a lesson computes.
        ranks: the processes that share the lanes.

    Attributes:
        count: lessons so far.
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
        """One step of q, from some of the window's tokens."""
        # Every `stride`-th step, from one step later each time; of all lanes, so that the lesson is
        # the same for any number of processes.
        steps, lanes = features.targets_TB.shape
        stride = min(steps, math.ceil(steps * lanes * self.ranks.count / _LESSON_TOKENS))
        taken = slice(self.count % stride, None, stride)
        self.count += 1
        self.calls.run("lesson", self._learn, *(each[taken] for each in features))

    def _learn(self, features_TBH: Tensor, gradient_TBH: Tensor, targets_TB: Tensor) -> Tensor:
        """Returns the loss before the step."""
        q, targets_N = self.q, targets_TB.flatten()
        features_NH = features_TBH.flatten(0, 1).to(q.unit)
        gradient_NH = gradient_TBH.flatten(0, 1).to(q.unit)
        expected_NH = gradient_NH - self.model.known_residual(targets_N).to(q.unit)
        counts_N = targets_N != IGNORED
        loss, finite = q.observe(
            features_NH,
            expected_NH,
            counts_N,
            clusters_N=self.model.clusters_of(targets_N),
            ranks=self.ranks,
        )
        parameters = list(q.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        self.ranks.average(gradients)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        step_where_finite(self.optimizer, finite)
        return loss.detach()

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Puts back what the optimizer's `state_dict` gave."""
        self.optimizer.load_state_dict(state)
        self.calls.forget()  # its moments are elsewhere now
