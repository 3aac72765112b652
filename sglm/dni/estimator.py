"""The interface between a training step and its estimator of state gradients; a null estimator.

A *state gradient* is ∂(Σ future nats of a lane)/∂(its state), one vector per lane, not divided by
batch or window. Truncated backpropagation assumes that it is zero at the end of every window; an
estimator returns something in its place (Jaderberg et al. 2017, sec. 2.1: a decoupled neural
interface).

`train_step` calls an estimator in this order, window after window:

    begin_text                  only where the lanes start anew
    begin_stretch               only at the first window of a stretch, with the coming text
    enter_window                with the state before the window
    estimate                    with the state after it, only if something is to be injected
    end_window                  with the results of the window's backward pass

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
    """The model, state and text with which a stretch of windows begins.

    Attributes:
        model: The model, whose weights will move during the stretch.
        state: The state before the first window, detached.
        coming: The stretch's text and what follows it, as far as the batcher looks ahead.
        window: T, the distance between the stretch's boundaries.
    """

    model: LSTMLanguageModel
    state: LSTMState
    coming: ComingText
    window: int


class FeatureGradient(NamedTuple):
    """The gradient of a window's negative log-likelihood at the features before the softmax.

    Attributes:
        features_TBH: Features that the softmax received, after dropout; detached.
        gradient_TBH: ∂(Σ nats)/∂features, without penalties; may be NaN or infinite if the step's
            gradient is.
        targets_TB: Token ids that were predicted from the features.
    """

    features_TBH: Tensor
    gradient_TBH: Tensor
    targets_TB: Tensor


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The results of one window's backward pass.

    An estimator must copy what it keeps, because a replayed CUDA graph overwrites the tensors at
    the next step.

    Attributes:
        gradient_BS: State gradient that arrived at the incoming state, detached; NaN if the step's
            gradient was not finite. It includes what an injected gradient contributed.
        outgoing: State after the window.
        injected: Whether a synthetic gradient entered at `outgoing`.
        probe: Whether the estimator is to be measured on this observation. Nothing synthetic went
            into a probe.
        features: Gradient at the features if the estimator `wants_features`, else None.
    """

    gradient_BS: Tensor
    outgoing: LSTMState
    injected: bool
    probe: bool
    features: FeatureGradient | None = None


class EstimatorStatus(NamedTuple):
    """The status of an estimator for logs, in plain numbers that are no longer on the device.

    Attributes:
        factor: Factor by which its estimates are multiplied before injection.
        is_calibrated: Whether the factor is measured rather than given.
        explained: Share of the observed gradients' squared length that factor·estimate explains,
            over the last probes.
        probes: Number of observations on which it was measured.
        capped: Share of the injected gradients that the trust bound shortened; None without a
            bound.
        echo: Share that it explains of observations containing its own estimates; near 1 if it
            predicts little but itself.
        is_finite: Whether all its parameters are finite.
    """

    factor: float
    is_calibrated: bool
    explained: float
    probes: int
    capped: float | None
    echo: float
    is_finite: bool


class StateGradientEstimator(Protocol):
    """An estimator of the state gradients at truncation boundaries.

    No method may wait for a number from the device (except `status`, and where an adaptive softmax
    has to wait), draw from torch's global generator, or change the model. If there are several
    ranks, all of them must make the same calls.
    """

    @property
    def wants_features(self) -> bool:
        """Whether `Observation.features` is needed; must not change during a run."""
        ...

    def begin_text(self) -> None:
        """Discards what is remembered of the lanes, because they start anew."""
        ...

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """Receives the coming text at the beginning of a stretch of windows."""
        ...

    def enter_window(self, incoming: LSTMState) -> None:
        """Receives the state before the window, whose gradient `end_window` will observe."""
        ...

    def estimate(self, outgoing: LSTMState) -> Tensor:
        """Returns the state gradient to inject after the window: `(B, S)`, packed, detached."""
        ...

    def end_window(self, observation: Observation) -> Agreement | None:
        """Learns from the results of the window's backward pass.

        Returns:
            The agreement of estimate and observation if this call measured it, else None.
        """
        ...

    def status(self) -> EstimatorStatus | None:
        """Returns the status for logs, None if nothing is measured; waits for the device."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns a tree of everything that steps change, for all ranks' lanes, to be saved."""
        ...

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, as far as it belongs to this rank."""
        ...


class PlainTruncation:
    """The null estimator: state gradients are zero. It has no network, draws no random numbers."""

    wants_features = False

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
