"""The learned estimator: a synthesizer at the truncation boundaries, bounded, measured and taught.

This module calls the parts in order between two windows: `injection` computes what is injected,
`teaching` trains the synthesizer, `trust` measures it. Shapes: B lanes, S coordinates of a lane's
state.
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
from sglm.runtime.ranks import ALONE, Ranks, every_lane, own_lanes


class LearnedEstimator:
    """Predicts with a synthesizer, which learns from what later windows send back.

    Args:
        synthesizer: predicts a state gradient from the packed state.
        learning_rate: of the synthesizer's own Adam, constant (Shang & Zhang 2019, sec. 4).
        factor: multiplies what is injected; None calibrates itself (`Trust.factor`).
        trust_bound: cap each lane's synthetic gradient (`Trust.longest`).
        noise: inject random directions of the prediction's length, drawn from here (a control).
        ranks: the processes that share the lanes.

    Attributes:
        recurrent_state: what a recurrent synthesizer carries from boundary to boundary.
    """

    wants_feature_gradients = False

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
        """The lanes start anew: what a recurrent synthesizer remembers of them is void."""
        self.recurrent_state = None

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """No text is read."""

    def enter_window(self, incoming: LSTMState) -> None:
        """Takes in the incoming state; a recurrent synthesizer moves on to the window's end."""
        self._incoming_BS = incoming.detach().packed()
        self._incoming_recurrent_state = self.recurrent_state
        if self.synthesizer.is_recurrent:
            with torch.no_grad():
                prediction: Prediction = self.synthesizer(self._incoming_BS, self.recurrent_state)
                self.recurrent_state = prediction.recurrent_state

    @torch.no_grad()
    def estimate(self, outgoing: LSTMState) -> Tensor:
        """Factor·ŝ(s), bounded, at the states after the window; or noise of that length."""
        prediction: Prediction = self.synthesizer(outgoing.packed(), self.recurrent_state)
        return self.injection.inject(prediction.gradient_BS)

    def end_window(self, observation: Observation) -> Agreement | None:
        """Learns what was observed at the incoming state; on a probe, measures that first."""
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
        """For logs; waits for the device."""
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
        """The auxiliary task's target: the next prediction (Jaderberg et al. 2017, sec. 3.1)."""
        prediction: Prediction = self.synthesizer(outgoing.detach().packed(), self.recurrent_state)
        return prediction.gradient_BS

    def state_dict(self) -> dict[str, Any]:
        """Everything here that steps change, of all ranks' lanes; to be called by all of them."""
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "optimizer": self.teaching.optimizer.state_dict(),
            "trust": self.trust.state_dict(),
            "injection": self.injection.state_dict(),
            "echo": self.teaching.echo,
            "recurrent_state": every_lane(self.ranks, self.recurrent_state),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave, as far as it is this rank's."""
        self.synthesizer.load_state_dict(tree["synthesizer"])
        self.teaching.optimizer.load_state_dict(tree["optimizer"])
        self.trust.load_state_dict(tree["trust"])
        self.injection.load_state_dict(tree["injection"])
        self.teaching.echo.copy_(tree["echo"])
        self.recurrent_state = own_lanes(self.ranks, tree["recurrent_state"], self.device)
