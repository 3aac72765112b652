"""The learned estimator: a synthesizer at truncation boundaries, bounded, measured and trained.

Between two windows, this module calls the parts in order: `injection` computes the gradient to
inject, `teaching` trains the synthesizer, `trust` measures it. Shapes: B lanes, S coordinates of a
lane's state.
"""

from typing import Any

import torch
from torch import Tensor

from sglm.dni.estimator import EstimatorStatus, Observation, StretchBeginning
from sglm.dni.injection import Injection
from sglm.dni.synthesizer import Prediction, Synthesizer
from sglm.dni.teaching import Lesson, Teaching
from sglm.dni.trust import Agreement, Trust
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks, gather_lanes, own_lanes


class LearnedEstimator:
    """An estimator whose synthesizer learns from what later windows send back.

    Args:
        synthesizer: Network that predicts a state gradient from the packed state.
        learning_rate: Learning rate of the synthesizer's own Adam, constant (Shang & Zhang 2019,
            sec. 4).
        factor: Factor by which predictions are multiplied before injection. None: calibrated
            (`Trust.factor`).
        trust_bound: Whether each lane's synthetic gradient is capped (`Trust.longest`).
        noise: Generator of random directions, which are injected with the prediction's length in
            its place (a control). None: the prediction itself.
        ranks: The processes that share the lanes.

    Attributes:
        recurrent_state: State that a recurrent synthesizer carries from boundary to boundary.
    """

    wants_features = False

    def __init__(
        self,
        synthesizer: Synthesizer,
        *,
        learning_rate: float,
        factor: float | None,
        trust_bound: bool = True,
        noise: torch.Generator | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.synthesizer = synthesizer
        self.ranks = ranks
        self.device = next(synthesizer.parameters()).device
        self.trust = Trust(synthesizer.size, device=self.device, ranks=ranks)
        self.injection = Injection(
            self.trust, factor=factor, bounded=trust_bound, noise=noise, ranks=ranks
        )
        self.teaching = Teaching(
            synthesizer,
            learning_rate=learning_rate,
            trust=self.trust,
            injection=self.injection,
            ranks=ranks,
        )
        self.recurrent_state: Tensor | None = None
        self._incoming_BS: Tensor | None = None
        self._incoming_recurrent_state: Tensor | None = None

    def begin_text(self) -> None:
        """Discards what a recurrent synthesizer remembers of the lanes, because they start anew."""
        self.recurrent_state = None

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """Does nothing: no coming text is read."""

    def enter_window(self, incoming: LSTMState) -> None:
        """Stores the incoming state; a recurrent synthesizer advances to the window's end."""
        self._incoming_BS = incoming.detach().packed()
        self._incoming_recurrent_state = self.recurrent_state
        if self.synthesizer.is_recurrent:
            with torch.no_grad():
                prediction: Prediction = self.synthesizer(self._incoming_BS, self.recurrent_state)
                self.recurrent_state = prediction.recurrent_state

    @torch.no_grad()
    def estimate(self, outgoing: LSTMState) -> Tensor:
        """Returns factor·ŝ(s), bounded, at the states after the window; or noise of that length."""
        prediction: Prediction = self.synthesizer(outgoing.packed(), self.recurrent_state)
        return self.injection.inject(prediction.gradient_BS)

    def end_window(self, observation: Observation) -> Agreement | None:
        """Learns from the gradient at the incoming state; on a probe, measures agreement first."""
        assert self._incoming_BS is not None, "enter_window comes before end_window"
        next_BS = self._predict_next(observation.outgoing) if self.synthesizer.auxiliary else None
        return self.teaching.learn(
            Lesson(
                self._incoming_BS,
                self._incoming_recurrent_state,
                observation.gradient_BS.detach(),
                next_BS,
                pure=not observation.injected,
                probe=observation.probe,
            )
        )

    def status(self) -> EstimatorStatus:
        """Returns the estimator's status for logs; waits for the device."""
        factor = float(self.injection.factor)
        return EstimatorStatus(
            factor=factor,
            is_calibrated=self.injection.fixed_factor is None,
            explained=self.trust.explained(factor),
            probes=int(self.trust.count),
            capped=float(self.injection.capped) if self.injection.bounded else None,
            echo=float(self.teaching.echo),
            is_finite=all(bool(p.isfinite().all()) for p in self.synthesizer.parameters()),
        )

    @torch.no_grad()
    def _predict_next(self, outgoing: LSTMState) -> Tensor:
        """Returns the auxiliary target, the next prediction (Jaderberg et al. 2017, sec. 3.1)."""
        prediction: Prediction = self.synthesizer(outgoing.detach().packed(), self.recurrent_state)
        return prediction.gradient_BS

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that steps change, for all ranks' lanes; every rank must call it."""
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "optimizer": self.teaching.optimizer.state_dict(),
            "trust": self.trust.state_dict(),
            "injection": self.injection.state_dict(),
            "echo": self.teaching.echo,
            "recurrent_state": gather_lanes(self.ranks, self.recurrent_state),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, as far as it belongs to this rank."""
        self.synthesizer.load_state_dict(tree["synthesizer"])
        self.teaching.optimizer.load_state_dict(tree["optimizer"])
        self.trust.load_state_dict(tree["trust"])
        self.injection.load_state_dict(tree["injection"])
        self.teaching.echo.copy_(tree["echo"])
        self.recurrent_state = own_lanes(self.ranks, tree["recurrent_state"], self.device)
