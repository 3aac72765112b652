"""The critic: it predicts a state's future loss, and the derivative of that is injected.

The value of a state is the lane's expected future nats, discounted from window to window:

    V(s_k) = E[L_{k+1} + γ·L_{k+2} + γ²·L_{k+3} + … | s_k]

A critic learns it by temporal differences, V(s_{k-1}) ← L_k + γ·V(s_k), from states and nats alone,
and ∂V/∂s replaces the state gradient (a *gradient critic* derived from a value: Weber et al. 2019).
Unlike other synthetic gradients, it is the gradient of a function. The discount limits how much of
a target comes from the critic itself. It also leaves out the distant future, which would add noise
to the target although a state carries no information about it.

Shapes: T steps of a window, B lanes, S coordinates of a lane's state.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.config import SynthesizerConfig
from sglm.dni.estimator import EstimatorStatus, FeatureGradient, Observation, StretchBeginning
from sglm.dni.injection import Injection
from sglm.dni.synthesizer import hidden_units, zero_linear
from sglm.dni.trust import Agreement, Trust, agreement
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.softmax_loss import chunk_rows
from sglm.model.state import LSTMState
from sglm.optim.optimizer import step_on_loss
from sglm.runtime.memory_basis import MemoryBasis
from sglm.runtime.ranks import ALONE, Ranks

HORIZON = 20  # tokens; about as far as state gradients reach on text, and as the gauge measures
_MEAN_OVER = 100  # windows; the loss falls while the critic learns
_SMALLEST = 1e-12  # keeps the unit of constant losses above zero


def discount(window: int) -> float:
    """Returns γ, the weight of each next window's nats: 1 − 1/`HORIZON` for each token."""
    return float((1 - 1 / HORIZON) ** window)


class Critic(nn.Module):
    """A network from packed states to their values: `(B, S)` to `(B,)`.

    A linear map plus a network with one hidden layer. Both start at zero and predict the deviation
    from the average value, in units of the deviation of one window's nats. The hidden layer is
    smooth because its derivative is used.

    Args:
        size: S.
        hidden: Number of units in the hidden layer.
        discount: γ.

    Attributes:
        mean: Running mean of a lane's nats in one window.
        unit: Root mean square of their deviation from the mean.
        windows: Number of windows observed.
    """

    def __init__(self, size: int, hidden: int = 128, *, discount: float) -> None:
        super().__init__()
        self.discount = discount
        self.linear = zero_linear(size, 1)
        self.hidden = nn.Linear(size, hidden)
        self.last = zero_linear(hidden, 1)
        for name, value in (("mean", 0.0), ("unit", 1.0), ("windows", 0.0)):
            self.register_buffer(name, torch.tensor(value))

    mean: Tensor
    unit: Tensor
    windows: Tensor

    def forward(self, state_BS: Tensor) -> Tensor:
        return self.mean / (1 - self.discount) + self.unit * self.normalized_deviation(state_BS)

    def normalized_deviation(self, state_BS: Tensor) -> Tensor:
        """Returns the predicted deviation from the average value, in multiples of `unit`."""
        predicted_B1: Tensor = self.linear(state_BS) + self.last(self.hidden(state_BS).tanh())
        return predicted_B1[:, 0]

    @torch.no_grad()
    def observe(self, nats_B: Tensor, *, ranks: Ranks) -> Tensor:
        """Updates mean and unit with a window's nats if all are finite; returns whether all are."""
        moments = torch.stack((nats_B.mean(), (nats_B - self.mean).square().mean()))
        ranks.average([moments])
        finite = moments.isfinite().all()
        first = self.windows == 0
        self.windows += finite
        weight = finite / self.windows.clamp(1, _MEAN_OVER)
        mean = torch.where(finite, self.mean + weight * (moments[0] - self.mean), self.mean)
        # At the first window the old mean is 0: subtracting the square of the new one gives the
        # variance.
        square = torch.where(first, moments[1] - moments[0].square(), moments[1])
        square = self.unit.square() + weight * (square - self.unit.square())
        self.mean.copy_(mean)
        self.unit.copy_(torch.where(finite, square.clamp_min(_SMALLEST).sqrt(), self.unit))
        return finite


class Transition(NamedTuple):
    """One window of every lane, from which a critic learns.

    Attributes:
        state_BS, next_BS: Packed states before and after the window.
        nats_B: Each lane's summed nats in the window.
    """

    state_BS: Tensor
    next_BS: Tensor
    nats_B: Tensor


class CriticLessons:
    """The regression of a critic onto L_k + γ·V(s_k), with an Adam of its own.

    Args:
        critic: The critic to train.
        learning_rate: Learning rate, constant.
        ranks: The processes that share the lanes.
    """

    def __init__(self, critic: Critic, *, learning_rate: float, ranks: Ranks = ALONE) -> None:
        self.critic = critic
        self.ranks = ranks
        self.optimizer = torch.optim.Adam(critic.parameters(), lr=learning_rate, fused=True)

    def learn(self, transition: Transition) -> None:
        """Takes one step, with mean and unit as updated by this window.

        Nothing is learned from nats that are not finite, nor from the first window: `mean` is then
        the mean of that window and all states are zero, so the gradient consists of rounding
        errors, which Adam would turn into steps of full size.
        """
        critic = self.critic
        first = critic.windows == 0
        finite = critic.observe(transition.nats_B, ranks=self.ranks)
        with torch.no_grad():
            target_B = (transition.nats_B - critic.mean) / critic.unit
            target_B = target_B + critic.discount * critic.normalized_deviation(transition.next_BS)
        loss = F.mse_loss(critic.normalized_deviation(transition.state_BS), target_B)
        step_on_loss(self.optimizer, loss, finite & ~first, ranks=self.ranks)


class CriticEstimator:
    """An estimator whose estimate is the derivative of a critic's value.

    On probes the derivative is compared with what the window alone sends back, although the value
    covers more. The calibrated factor counts the difference as error, so it errs on the low side.

    Args:
        model: The language model, whose softmax gives each lane's nats.
        critic: The critic, which predicts values.
        learning_rate: Learning rate of the critic's own Adam.
        factor: Factor by which gradients are multiplied before injection. None: calibrated
            (`Trust.factor`).
        trust_bound: Whether each lane's gradient is capped (`Trust.longest`).
        noise: Generator of random directions, which are injected with the gradient's length in its
            place (a control). None: the gradient itself.
        ranks: The processes that share the lanes.
    """

    wants_features = True  # for the features, from which the lanes' nats are computed

    def __init__(
        self,
        model: LSTMLanguageModel,
        *,
        critic: Critic,
        learning_rate: float = 2e-3,
        factor: float | None = None,
        trust_bound: bool = True,
        noise: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.critic = critic.to(model.embedding)
        self.ranks = ranks
        self.trust = Trust(model.shape.state_size, device=model.embedding.device, ranks=ranks)
        self.injection = Injection(
            self.trust, factor=factor, bounded=trust_bound, noise=noise, ranks=ranks
        )
        self.lessons = CriticLessons(critic, learning_rate=learning_rate, ranks=ranks)
        self._incoming_BS: Tensor | None = None

    @torch.no_grad()
    def values(self, state_BS: Tensor) -> Tensor:
        """Returns the predicted value of each packed state, `(B,)`: Σ_j γ^j·(nats of window j)."""
        values_B: Tensor = self.critic(state_BS)
        return values_B

    def derivatives(self, state_BS: Tensor) -> Tensor:
        """Returns ∂V/∂s at packed states, `(B, S)`, in nats, before bound and factor."""
        leaf_BS = state_BS.detach().requires_grad_()
        with torch.enable_grad():
            total = self.critic(leaf_BS).sum()
        (gradient_BS,) = torch.autograd.grad(total, leaf_BS)
        return gradient_BS

    def begin_text(self) -> None:
        """Does nothing: no memory is carried from window to window."""

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """Does nothing: no coming text is read."""

    def enter_window(self, incoming: LSTMState) -> None:
        """Stores the state whose value is learned."""
        self._incoming_BS = incoming.detach().packed()

    def estimate(self, outgoing: LSTMState) -> Tensor:
        """Returns the value's derivative after the window, bounded, times the factor; or noise."""
        return self.injection.inject(self.derivatives(outgoing.packed()) / self.trust.unit)

    def end_window(self, observation: Observation) -> Agreement | None:
        """Measures on a probe; then learns from the window's nats."""
        assert self._incoming_BS is not None, "enter_window comes before end_window"
        assert observation.features is not None, "a critic needs the features"
        on_probe, observed_BS = None, observation.gradient_BS
        if observation.probe:
            predicted_BS = self.derivatives(self._incoming_BS)
            self.trust.observe(self.injection.bound(predicted_BS), observed_BS)
            on_probe = agreement(predicted_BS, observed_BS, self.ranks)
        nats_B = lane_nats(self.model, observation.features)
        # If the step's gradient was not finite, this makes the nats NaN, so nothing is learned.
        nats_B = nats_B + 0 * observed_BS.sum(dim=1).to(nats_B.dtype)
        outgoing_BS = observation.outgoing.detach().packed()
        self.lessons.learn(Transition(self._incoming_BS, outgoing_BS, nats_B))
        return on_probe

    def status(self) -> EstimatorStatus:
        """Returns the estimator's status for logs; waits for the device."""
        factor = float(self.injection.factor)
        return EstimatorStatus(
            factor=factor,
            is_calibrated=self.injection.fixed_factor is None,
            explained=self.trust.explained(factor),
            probes=int(self.trust.count),
            capped=float(self.injection.capped) if self.injection.bounded else None,
            echo=0.0,  # no target contains an injected gradient
            is_finite=all(bool(p.isfinite().all()) for p in self.critic.parameters()),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that steps change; every rank must call it."""
        return {
            "critic": self.critic.state_dict(),
            "optimizer": self.lessons.optimizer.state_dict(),
            "trust": self.trust.state_dict(),
            "injection": self.injection.state_dict(),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.critic.load_state_dict(tree["critic"])
        self.lessons.optimizer.load_state_dict(tree["optimizer"])
        self.trust.load_state_dict(tree["trust"])
        self.injection.load_state_dict(tree["injection"])


@torch.no_grad()
def lane_nats(model: LSTMLanguageModel, features: FeatureGradient) -> Tensor:
    """Returns each lane's summed nats in a window, `(B,)`; the logits held at once are bounded."""
    targets_TB = features.targets_TB
    rows = chunk_rows(model.shape.vocab_size, targets_TB.device.type)
    together = max(1, rows // targets_TB.shape[1])
    sums = [
        model.nll(features_TBH, targets_TB, reduction="none").sum(0)
        for features_TBH, targets_TB in zip(
            torch.split(features.features_TBH, together),
            torch.split(targets_TB, together),
            strict=True,
        )
    ]
    return torch.stack(sums).sum(0)


def critic_parameters(settings: SynthesizerConfig, shape: ModelShape) -> int:
    """Returns the number of the critic's parameters."""
    with torch.device("meta"):
        critic = Critic(shape.state_size, hidden_units(settings), discount=0.0)
    return sum(parameter.numel() for parameter in critic.parameters())


def critic_floats(
    settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis, *, window: int
) -> float:
    """Returns the floats that a lesson holds: logits and their log-softmax, states, the network."""
    rows = chunk_rows(shape.vocab_size, "cpu" if basis.on_cpu else "cuda")
    logits = 2 * min(max(rows, basis.lanes), basis.lanes * window) * shape.vocab_size
    return logits + basis.lanes * (4 * shape.state_size + 12 * hidden_units(settings))
