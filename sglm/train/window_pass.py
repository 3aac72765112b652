"""The model's pass over one window, from inputs to the objective.

Shapes: T time steps, B lanes, H features, E coordinates of a word vector.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from sglm.config import RegularizerConfig
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.train.truncation import compensated_outputs


class WindowOutputs(NamedTuple):
    """The results of a pass. All sums are over the window and its lanes.

    Attributes:
        objective_nats: The sum to differentiate: negative log-likelihood and penalties.
        nll_nats: The negative log-likelihood alone.
        outgoing: The state after the window.
        features_TBH: The features that the softmax saw, if the pass keeps them.
        tap_TBH: A tensor whose `.grad`, after a backward pass, is the gradient of the negative
            log-likelihood in these features.
    """

    objective_nats: Tensor
    nll_nats: Tensor
    outgoing: LSTMState
    features_TBH: Tensor | None = None
    tap_TBH: Tensor | None = None


RunsWindow = Callable[[Tensor, Tensor, LSTMState], WindowOutputs]


class WindowPass(nn.Module):
    """The model's pass over a window, as a module, so that DistributedDataParallel can average the
    gradients of its backward pass over the ranks.

    Args:
        model: The language model.
        regularizer: Penalties on the last layer's outputs. None: no penalties.
        random_window: Mean length of randomly truncated windows; None if the length is fixed.
        keeps_features: Whether to return the features, for an estimator that needs their gradients.
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
            inputs_TB: Token ids; more steps than in `targets_TB` if the past is read again.
            targets_TB: The targets of the last inputs.
            incoming: The state before the first input.
            tap_TBH: A leaf of zeros that is added to the features, so that their gradient can come
                out of a recorded graph. None: the features, if kept, hold their gradient.
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
            features_TBH = features_TBH.view_as(features_TBH)  # excludes the penalty's gradient
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
