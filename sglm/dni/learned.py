"""The learned estimator: a synthesizer at the truncation boundaries, bounded, measured and taught.

Here is the order of things between two windows; what is injected is `injection`'s, what is learned
`teaching`'s, how far a prediction is trusted `trust`'s. Shapes: B lanes, S coordinates of a lane's
state, P boundaries of a stretch, M states.
"""

from typing import Any

import torch
from torch import Tensor

from sglm.dni.estimator import EstimatorStatus, Observation, StretchBeginning
from sglm.dni.exact import future_gradients
from sglm.dni.injection import Injection
from sglm.dni.stretch import Lesson, Stretch, own_lanes
from sglm.dni.synthesizer import LookaheadSynthesizer, Prediction, Synthesizer
from sglm.dni.teaching import Teaching
from sglm.dni.trust import Agreement, Trust
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks


class LearnedEstimator:
    """Predicts with a synthesizer, which learns from what later windows send back.

    Args:
        synthesizer: predicts a state gradient from the packed state.
        learning_rate: of the synthesizer's own Adam, constant (Shang & Zhang 2019, sec. 4).
        factor: multiplies what is injected; None calibrates itself (`Trust.factor`).
        trust_bound: cap each lane's synthetic gradient (`Trust.longest`).
        stretch: windows whose lessons are learned together.
        lookahead: steps past a boundary that a lookahead synthesizer surely reads.
        noise: inject random directions of the prediction's length, drawn from here (a control).
        bootstrapped: learn from what next windows send back; otherwise only from exact gradients,
            at the stretches where the decision is to teach.
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
        stretch: int = 1,
        lookahead: int = 10,
        noise: torch.Generator | None = None,
        bootstrapped: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self.synthesizer = synthesizer
        self.bootstrapped = bootstrapped
        self.ranks = ranks
        self.device = next(synthesizer.parameters()).device
        self.trust = Trust(synthesizer.size, device=self.device, ranks=ranks)
        self.injection = Injection(
            self.trust,
            factor=factor,
            bounded=trust_bound,
            noise=noise,
            stretch=stretch,
            ranks=ranks,
        )
        self.teaching = Teaching(
            synthesizer,
            learning_rate=learning_rate,
            trust=self.trust,
            injection=self.injection,
            stretch=stretch,
            ranks=ranks,
        )
        self.stretch = Stretch(stretch, lookahead=lookahead)
        self.recurrent_state: Tensor | None = None
        self._incoming_BS: Tensor | None = None
        self._incoming_recurrent_state: Tensor | None = None

    def begin_text(self) -> None:
        """The lanes start anew: what a recurrent synthesizer remembers of them is void."""
        self.recurrent_state = None

    def begin_stretch(self, beginning: StretchBeginning, *, teach: bool) -> None:
        """Reads ahead, and now and then learns from the exact gradients of what was read."""
        if isinstance(self.synthesizer, LookaheadSynthesizer):
            self.stretch.read_ahead(beginning.model, beginning.coming, beginning.window)
            self.stretch.summarise(self.synthesizer)
        if teach:
            text_windows = len(beginning.coming.inputs_CB) // beginning.window
            boundaries = min(self.stretch.windows, text_windows)
            self.teach(*self.exact_gradients(beginning, boundaries))

    def exact_gradients(
        self, beginning: StretchBeginning, boundaries: int
    ) -> tuple[Tensor, Tensor]:
        """What it is taught: see `future_gradients`. An experiment may teach something else."""
        return future_gradients(beginning, boundaries)

    def enter_window(self, incoming: LSTMState) -> None:
        """Takes in the incoming state, and moves on to the window's end."""
        self._incoming_BS = incoming.detach().packed()
        self._incoming_recurrent_state = self.recurrent_state
        if self.synthesizer.is_recurrent:
            with torch.no_grad():
                prediction: Prediction = self.synthesizer(self._incoming_BS, self.recurrent_state)
                self.recurrent_state = prediction.recurrent_state
        self.stretch.index += 1

    @torch.no_grad()
    def estimate(self, outgoing: LSTMState) -> Tensor:
        """Factor·ŝ(s), bounded, at the states after the window; or noise of that length."""
        prediction: Prediction = self.synthesizer(outgoing.packed(), self._context())
        return self.injection.inject(prediction.gradient_BS, count_cuts=self.stretch.index == 1)

    def end_window(self, observation: Observation) -> Agreement | None:
        """Keeps the lesson; where a stretch or the text ends, measures and learns from all of them.

        The predictions that are measured there, before anything is learned, are those of the
        windows: the synthesizer's weights have stood still.
        """
        self._keep_lesson(observation)
        if not self.stretch.is_over(observation.is_last):
            return None
        lessons = self.stretch.take_lessons()
        if not lessons:
            return None
        with torch.set_grad_enabled(self.bootstrapped):
            prediction = self.teaching.predict(lessons, self.stretch.contexts(lessons))
        on_probes = self.teaching.measure(lessons, prediction, update_trust=self.bootstrapped)
        if self.bootstrapped:
            self.teaching.regress(lessons, prediction)
        return on_probes

    def teach(self, states_PBS: Tensor, gradients_PBS: Tensor) -> None:
        """Learns from exact gradients at the first boundaries of the stretch that begins.

        Args:
            states_PBS: packed states at the stretch's boundaries, the first one first.
            gradients_PBS: the gradients there. Lanes that are not finite teach nothing.
        """
        pairs = zip(states_PBS, gradients_PBS, strict=True)
        lessons = [
            Lesson(state_BS, None, index, gradient_BS, None, pure=True, probe=False)
            for index, (state_BS, gradient_BS) in enumerate(pairs)
        ]
        prediction = self.teaching.predict(lessons, self.stretch.contexts(lessons))
        predicted_MS = prediction.gradient_BS.detach() * self.trust.unit
        self.teaching.update_trust(predicted_MS, gradients_PBS.flatten(0, 1))
        self.teaching.regress(lessons, prediction)
        if isinstance(self.synthesizer, LookaheadSynthesizer):
            self.stretch.summarise(self.synthesizer)  # with the weights of now

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

    def _keep_lesson(self, observation: Observation) -> None:
        if not (self.bootstrapped or observation.probe):
            return
        assert self._incoming_BS is not None, "enter_window comes before end_window"
        next_BS = self._predict_next(observation.outgoing) if self.synthesizer.auxiliary else None
        self.stretch.lessons.append(
            Lesson(
                self._incoming_BS,
                self._incoming_recurrent_state,
                self.stretch.index - 1,
                observation.gradient_BS.detach(),
                next_BS,
                pure=not observation.injected,
                probe=observation.probe,
            )
        )

    def _context(self) -> Tensor | None:
        """What the synthesizer is given beside the state at the boundary after the window."""
        summaries = self.stretch.summaries
        return self.recurrent_state if summaries is None else summaries[self.stretch.index]

    @torch.no_grad()
    def _predict_next(self, outgoing: LSTMState) -> Tensor:
        """The auxiliary task's target: the next prediction (Jaderberg et al. 2017, sec. 3.1)."""
        prediction: Prediction = self.synthesizer(outgoing.detach().packed(), self._context())
        return prediction.gradient_BS

    def state_dict(self) -> dict[str, Any]:
        """Everything here that steps change, of all ranks' lanes; to be called by all of them."""
        recurrent_state = self.recurrent_state
        return {
            "synthesizer": self.synthesizer.state_dict(),
            "optimizer": self.teaching.optimizer.state_dict(),
            "trust": self.trust.state_dict(),
            "injection": self.injection.state_dict(),
            "echo": self.teaching.echo,
            "recurrent_state": None
            if recurrent_state is None
            else self.ranks.gather(recurrent_state),
            "stretch": self.stretch.state_dict(self.ranks),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave, as far as it is this rank's."""
        self.synthesizer.load_state_dict(tree["synthesizer"])
        self.teaching.optimizer.load_state_dict(tree["optimizer"])
        self.trust.load_state_dict(tree["trust"])
        self.injection.load_state_dict(tree["injection"])
        self.teaching.echo.copy_(tree["echo"])
        self.recurrent_state = own_lanes(self.ranks, tree["recurrent_state"], self.device)
        self.stretch.load_state_dict(tree["stretch"], self.ranks, self.device)
        if self.stretch.features_CKF is not None:
            assert isinstance(self.synthesizer, LookaheadSynthesizer)
            self.stretch.summarise(self.synthesizer)
