"""Who estimates state gradients: the interface that a training step knows, and the null estimator.

A *state gradient* is ∂(Σ future nats of a lane)/∂(its state), one vector a lane, not divided by
batch or window. Truncated backpropagation takes it for zero at the end of every window; an
estimator returns something in its place (Jaderberg et al. 2017, sec. 2.1: a decoupled neural
interface).

`train_step` calls an estimator in this order, window after window:

    begin_text                  the lanes start anew
    begin_stretch               coming text is shown to what reads it, once for several windows
    enter_window                the state before the window
    estimate                    the state after it, only where something is to be injected
    end_window                  what the window's backward pass left behind

Shapes: T time, B lanes, S coordinates of a lane's state, H features, C steps of coming text.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from sglm.dni.trust import Agreement
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.text.batcher import ComingText


class StretchBeginning(NamedTuple):
    """What there is when a stretch of windows begins.

    Attributes:
        model: as it is then; its weights will move during the stretch.
        state: before the first window, detached.
        coming: the stretch's text and what follows it, as far as the batcher looks ahead.
        window: T, the distance of the stretch's boundaries.
    """

    model: LSTMLanguageModel
    state: LSTMState
    coming: ComingText
    window: int


class FeatureGradient(NamedTuple):
    """What a window's negative log-likelihood sends back to the features before the softmax.

    Attributes:
        features_TBH: as the softmax saw them, dropout included; detached.
        gradient_TBH: ∂(Σ nats)/∂features, without penalties; NaN or infinite where the step's
            gradient is.
        targets_TB: the token ids that were predicted from them.
    """

    features_TBH: Tensor
    gradient_TBH: Tensor
    targets_TB: Tensor


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one window's backward pass left behind; to be copied where it is kept: a replayed graph
    writes over it at the next step.

    Attributes:
        gradient_BS: the state gradient that arrived at the incoming state, detached; NaN where the
            step's gradient was not finite. If something was injected, it contains that.
        outgoing: the state after the window.
        injected: whether a synthetic gradient entered at `outgoing`.
        probe: whether the estimator is to be measured on this observation, into which then nothing
            synthetic went.
        features: for an estimator that `wants_feature_gradients`, else None.
    """

    gradient_BS: Tensor
    outgoing: LSTMState
    injected: bool
    probe: bool
    features: FeatureGradient | None = None


class EstimatorStatus(NamedTuple):
    """How an estimator is doing, for logs: plain numbers, for which the device was waited for.

    Attributes:
        factor: what multiplies its estimates before they are injected.
        is_calibrated: whether the factor is measured, or given.
        explained: share of the observed gradients' squared length that factor·estimate explains,
            over the last probes.
        probes: observations on which it was measured.
        capped: share of the injected gradients that the trust bound shortened; None without one.
        echo: share of the observations that contain its own estimates which it explains: near 1
            where it predicts little but itself.
        is_finite: whether its parameters are.
    """

    factor: float
    is_calibrated: bool
    explained: float
    probes: int
    capped: float | None
    echo: float
    is_finite: bool


class StateGradientEstimator(Protocol):
    """Estimates the state gradients at truncation boundaries.

    No method may wait for a number from the device (but `status`, and what an adaptive softmax
    waits for), draw from torch's global generator, or change the model. With several ranks all of
    them call every method alike.
    """

    @property
    def wants_feature_gradients(self) -> bool:
        """Whether `Observation.features` is asked for; must not change during a run."""
        ...

    def begin_text(self) -> None:
        """The lanes start anew: what is remembered of them is void."""
        ...

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """A stretch of windows begins, and its text is shown."""
        ...

    def enter_window(self, incoming: LSTMState) -> None:
        """The state before the window: what `end_window` observes is its gradient."""
        ...

    def estimate(self, outgoing: LSTMState) -> Tensor:
        """The state gradient to inject after the window: `(B, S)`, packed, detached."""
        ...

    def end_window(self, observation: Observation) -> Agreement | None:
        """Takes in what the window's backward pass left behind, and learns from it.

        Returns:
            How good the estimates were on probes, where some were measured just now.
        """
        ...

    def status(self) -> EstimatorStatus | None:
        """For logs; None for an estimator that measures nothing. Waits for the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """A tree of everything that steps change, of all ranks' lanes, to be saved."""
        ...

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave, as far as it is this rank's."""
        ...


class PlainTruncation:
    """The null estimator: state gradients are zero. It has no network and draws no number."""

    wants_feature_gradients = False

    def begin_text(self) -> None:
        pass

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        pass

    def enter_window(self, incoming: LSTMState) -> None:
        pass

    def estimate(self, outgoing: LSTMState) -> Tensor:
        packed_BS = outgoing.packed()
        return packed_BS.new_zeros(packed_BS.shape)

    def end_window(self, observation: Observation) -> Agreement | None:
        return None

    def status(self) -> EstimatorStatus | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        pass
