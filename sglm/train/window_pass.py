"""The model's pass over one window, from inputs to the objective.

Shapes: T time, B lanes, H features.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from sglm.config import RegularizerConfig
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.train.truncation import compensated_outputs


class WindowOutputs(NamedTuple):
    """What a pass gives; all sums are over the window and its lanes.

    Attributes:
        objective_nats: what is to be differentiated: likelihood and penalties.
        nll_nats: the negative log-likelihood alone.
        outgoing: the state after the window.
        features_TBH: what the softmax saw, where that was asked for.
        tap_TBH: a tensor whose `.grad`, after a backward pass, is the gradient of the negative
            log-likelihood in these features.
    """

    objective_nats: Tensor
    nll_nats: Tensor
    outgoing: LSTMState
    features_TBH: Tensor | None = None
    tap_TBH: Tensor | None = None


RunsWindow = Callable[[Tensor, Tensor, LSTMState], WindowOutputs]


class WindowPass(nn.Module):
    """A module of its own, so that DistributedDataParallel can average the gradients of its
    backward pass over the ranks.

    Args:
        model: of language.
        regularizer: penalties on the last layer's outputs; None: without.
        random_window: mean length of randomly truncated windows, or None where it is fixed.
        keeps_features: whether the features are handed out, for an estimator that wants their
            gradients.
    """

    def __init__(
        self,
        model: LSTMLanguageModel,
        *,
        regularizer: RegularizerConfig | None = None,
        random_window: int | None = None,
        keeps_features: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.regularizer = regularizer or RegularizerConfig()
        self.random_window = random_window
        self.keeps_features = keeps_features

    def forward(
        self,
        inputs_TB: Tensor,
        targets_TB: Tensor,
        incoming: LSTMState,
        *,
        tap_TBH: Tensor | None = None,
    ) -> WindowOutputs:
        """Runs the model over the window.

        Args:
            inputs_TB: token ids; there may be more of them than targets, at the beginning.
            targets_TB: of the last inputs.
            incoming: the state before the first input.
            tap_TBH: zeros that are added to the features, a leaf, so that their gradient comes out
                of a recorded graph; None: the features keep it themselves, if they are asked for.
        """
        embedded_TBE, output_weight = self.model.embed(inputs_TB)
        if self.random_window is None:
            outputs_TBH, outgoing = self.model.outputs(embedded_TBE, incoming)
        else:
            outputs_TBH, outgoing = compensated_outputs(
                self.model, embedded_TBE, incoming, window=self.random_window
            )
        outputs_TBH = outputs_TBH[-len(targets_TB) :]
        features_TBH, penalty = self.model.drop_and_penalize(
            outputs_TBH, self.regularizer.activation, self.regularizer.temporal
        )
        if tap_TBH is not None:
            features_TBH = features_TBH + tap_TBH
        elif self.keeps_features:
            features_TBH = features_TBH.view_as(features_TBH)  # of the nats' gradient alone
            features_TBH.retain_grad()
            tap_TBH = features_TBH
        nll_nats = self.model.nll(features_TBH, targets_TB, output_weight=output_weight)
        return WindowOutputs(
            nll_nats + targets_TB.numel() * penalty,
            nll_nats,
            outgoing,
            features_TBH if self.keeps_features else None,
            tap_TBH,
        )
