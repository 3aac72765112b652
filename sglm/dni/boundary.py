"""The truncation boundary: where one window's state becomes the next one's input.

Plain truncated backpropagation lets no gradient through. Here a synthesizer stands in for the
future: it says what gradient would come back, and learns from what the next window does send back.
`docs/algorithm.md` derives the terms. Shapes: B lanes, S coordinates of a lane's state. Gradients
are state gradients: of nats summed over a lane's window, not divided by batch or window.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sglm.dni.synthesizer import Prediction, Synthesizer
from sglm.model.state import LSTMState

_RUNNING_MEAN_OVER = 100  # probe windows; long against noise, short against a training run
_SMALLEST_NORM = 1e-12  # keeps ratios of a zero gradient finite


@dataclass(frozen=True)
class Agreement:
    """How good the synthesizer's prediction of a *pure* observed gradient was: scalars.

    Attributes:
        cosine: of the angle between the two, over all lanes and coordinates.
        relative_mse: ‖ŝ − g‖² / ‖g‖²; 1 is what predicting zero gets, above 1 is worse than that.
        norm_ratio: ‖ŝ‖ / ‖g‖.
    """

    cosine: Tensor
    relative_mse: Tensor
    norm_ratio: Tensor


class Boundary:
    """Predicts, injects, bounds and learns; owns the synthesizer and its optimizer.

    Args:
        synthesizer: predicts a state gradient from the packed state.
        learning_rate: of the synthesizer's own Adam, constant (Shang & Zhang 2019, sec. 4).
        factor: multiplies what is injected.
        trust_bound: cap each lane's synthetic gradient at the running mean norm of the observed
            ones, without which bootstrapped targets can feed on themselves.
        probe_every: one window in so many injects nothing and so observes a pure gradient.
    """

    def __init__(
        self,
        synthesizer: Synthesizer,
        learning_rate: float,
        factor: float,
        trust_bound: bool = True,
        probe_every: int = 10,
    ) -> None:
        self.synthesizer = synthesizer
        self.optimizer = torch.optim.Adam(synthesizer.parameters(), lr=learning_rate)
        self.factor = factor
        self.trust_bound = trust_bound
        self.probe_every = probe_every
        self.memory: Tensor | None = None
        # Until a pure gradient has been seen the bound is zero: nothing is trusted yet.
        device = next(synthesizer.parameters()).device
        self.observed_norm_mean = torch.zeros((), device=device)
        self.probes_seen = 0

    def is_probe(self, step: int) -> bool:
        """Whether this step injects nothing, whatever its mode."""
        return step % self.probe_every == 0

    def reset(self) -> None:
        """The lanes start anew: what the synthesizer remembers of them is void."""
        self.memory = None

    def read(self, incoming: LSTMState) -> Prediction:
        """Predicts the gradient at the incoming state; keeps the graph for `learn`."""
        prediction: Prediction = self.synthesizer(incoming.detach().packed(), self.memory)
        self.memory = prediction.memory
        return prediction

    @torch.no_grad()
    def synthesize(self, state: LSTMState) -> Tensor:
        """ŝ(s): the gradient `(B, S)` that the future is expected to send back to these states,
        bounded, detached, before `factor`."""
        gradient_BS: Tensor = self.synthesizer(state.detach().packed(), self.memory).gradient_BS
        if not self.trust_bound:
            return gradient_BS
        norms_B1 = gradient_BS.norm(dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
        trusted_B1: Tensor = (self.observed_norm_mean / norms_B1).clamp_max(1.0)
        return gradient_BS.mul(trusted_B1)

    def surrogate(self, outgoing: LSTMState) -> Tensor:
        """factor·⟨s, ŝ(s)⟩ summed over lanes, with ŝ detached.

        Its gradient in s is factor·ŝ(s): added to the loss, it makes the one backward pass carry
        the synthetic gradient into the window (vector–Jacobian identity), in the loss's own unit.
        """
        return self.factor * (outgoing.packed() * self.synthesize(outgoing)).sum()

    def learn(
        self, prediction: Prediction, observed_BS: Tensor, outgoing: LSTMState, pure: bool
    ) -> Agreement | None:
        """Regresses the prediction onto the observed gradient.

        Args:
            prediction: from `read` at the window's incoming state.
            observed_BS: the state gradient that the window's backward pass left there.
            outgoing: the state after the window; the auxiliary task's target comes from it.
            pure: whether the window injected nothing. Then the observation measures the
                synthesizer and sets the trust bound; otherwise it contains the synthesizer's own
                word about a later future.

        Returns:
            How good the prediction was, for a pure observation.
        """
        observed_BS = observed_BS.detach()
        agreement = self._measure(prediction.gradient_BS, observed_BS) if pure else None
        loss = (prediction.gradient_BS - observed_BS).square().sum(dim=1).mean()
        if prediction.next_gradient_BS is not None:
            # The auxiliary task of Jaderberg et al. 2017, sec. 3.1: foresee one's own next word.
            with torch.no_grad():
                ahead_BS = self.synthesizer(outgoing.detach().packed(), self.memory).gradient_BS
            loss = loss + (prediction.next_gradient_BS - ahead_BS).square().sum(dim=1).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return agreement

    def state_dict(self) -> dict[str, Any]:
        """Everything here that steps change."""
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.memory,
            "observed_norm_mean": self.observed_norm_mean,
            "probes_seen": self.probes_seen,
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        device = self.observed_norm_mean.device
        self.synthesizer.load_state_dict(tree["synthesizer"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.memory = None if tree["memory"] is None else tree["memory"].to(device)
        self.observed_norm_mean = tree["observed_norm_mean"].to(device)
        self.probes_seen = tree["probes_seen"]

    @torch.no_grad()
    def _measure(self, predicted_BS: Tensor, observed_BS: Tensor) -> Agreement:
        self.probes_seen += 1
        weight = 1 / min(self.probes_seen, _RUNNING_MEAN_OVER)
        self.observed_norm_mean.lerp_(observed_BS.norm(dim=1).mean().float(), weight)
        observed = observed_BS.norm().clamp_min(_SMALLEST_NORM)
        predicted = predicted_BS.norm()
        return Agreement(
            cosine=(predicted_BS * observed_BS).sum()
            / (observed * predicted.clamp_min(_SMALLEST_NORM)),
            relative_mse=(predicted_BS - observed_BS).square().sum() / observed.square(),
            norm_ratio=predicted / observed,
        )
