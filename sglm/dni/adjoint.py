"""The adjoint estimator: the coming text through the model's own LSTM, and back, without a softmax.

Let h be the feature before the softmax. By the chain rule, the gradient of the future's nats with
respect to a state follows from ∂(nats)/∂h at every coming step, by backpropagation through the
LSTM. For softmax and cross-entropy ∂(nats)/∂h = Wᵀ·p(h) − W[y], of which the second term is known.
Only the *expected row* Wᵀ·p(h) costs a softmax. A small network q learns to predict it from what
the training loss has computed anyway, ∂(nats)/∂h + W[y]. So the state gradient is predicted by one
forward and one backward pass through the LSTM, without bootstrapping: q's targets contain no
prediction of its own.

Shapes: C steps of coming text, T of a window, B lanes, H features, V vocabulary, S coordinates of a
lane's state, P boundaries.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from sglm.config import SynthesizerConfig
from sglm.dni.adjoint_pass import WayBack, adjoint_gradients
from sglm.dni.estimator import EstimatorStatus, Observation, StretchBeginning
from sglm.dni.expected_row import ExpectedRow, residual_is_cheap, residual_of, softmax_residual
from sglm.dni.injection import Injection
from sglm.dni.random_feedback import feedback_floats
from sglm.dni.row_lessons import RowLessons
from sglm.dni.synthesizer import hidden_units
from sglm.dni.trust import Agreement, Trust, agreement
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.model.lstm_layer import layer_backward_floats
from sglm.model.memory import activation_floats
from sglm.model.state import LSTMState
from sglm.runtime.calls import Calls
from sglm.runtime.memory_basis import MemoryBasis
from sglm.runtime.ranks import ALONE, Ranks, every_lane, own_lanes
from sglm.text.batcher import ComingText


class AdjointEstimator:
    """Injects the adjoint of the coming text, read now and then.

    It reads where the first estimate of a stretch is asked for, from the window's own outgoing
    state on. Windows shorter than the reach are read along, and the gradients of the stretch's
    further boundaries are kept, and age until they are injected. Longer windows would cost too
    much: in a stretch of them something is injected once, and q learns once. Where nothing is
    injected nothing is read, except on probes: they read the window that they measure, as far as
    the reach.

    It injects nothing until q is better than the mean of its targets (`ExpectedRow.is_better`). It
    reads without dropout, and so draws no random number.

    Args:
        model: of language; read with its weights of the moment.
        stretch: windows from reading to reading; the batcher must show the text of as many and what
            is to be read beyond them.
        reach: steps that are read past the last boundary that a reading is for.
        learning_rate: of q's own Adam.
        factor: multiplies what is injected; None calibrates itself on probes (`Trust.factor`),
            where prediction and observation both reach over one window.
        trust_bound: cap each lane's gradient (`Trust.longest`).
        activation: α of the activation penalty, which is added to the residual. (The temporal
            penalty is left out.)
        exact: compute the softmax's residual instead of predicting it, without q; None: where the
            vocabulary is so small that it costs no more (`residual_is_cheap`).
        hidden: units of q's hidden layer.
        noise: inject random directions of the gradient's length, drawn from here (a control).
        other_lane: inject what is read from the text of the lane before (a control).
        way_back: from residuals to state gradients.
        calls: how to call the readings, the injections and q's lessons.
        ranks: the processes that share the lanes.
    """

    def __init__(
        self,
        model: LSTMLanguageModel,
        *,
        stretch: int = 1,
        reach: int = 10,
        learning_rate: float = 2e-3,
        factor: float | None = None,
        trust_bound: bool = True,
        activation: float = 0.0,
        exact: bool | None = None,
        hidden: int = 128,
        noise: torch.Generator | None = None,
        other_lane: bool = False,
        way_back: WayBack = adjoint_gradients,
        calls: Calls | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        weight = model.embedding
        self.model = model
        self.stretch = stretch
        self.reach = reach
        self.activation = activation
        self.other_lane = other_lane
        self.way_back = way_back
        self.calls = calls or Calls()
        self.ranks = ranks
        self.trust = Trust(model.shape.state_size, device=weight.device, ranks=ranks)
        self.injection = Injection(
            self.trust, factor=factor, bounded=trust_bound, noise=noise, ranks=ranks
        )
        self.expected_row: ExpectedRow | None = None
        if not (residual_is_cheap(model.shape) if exact is None else exact):
            # Forked, so that the model's dropout draws the same masks with and without it.
            with torch.random.fork_rng(devices=[]):
                q = ExpectedRow(
                    model.shape.widths[-1], hidden, clusters=1 + len(model.shape.cutoffs)
                )
            self.expected_row = q.to(weight)
            self.row_lessons = RowLessons(
                self.expected_row,
                model=model,
                learning_rate=learning_rate,
                calls=self.calls,
                ranks=ranks,
            )
        self.window = 0
        self.index = 0
        self._coming: ComingText | None = None
        self._incoming: LSTMState | None = None
        self._read_at = 0
        self._gradients_PBS: Tensor | None = None

    @property
    def wants_feature_gradients(self) -> bool:
        """What q learns from."""
        return self.expected_row is not None

    @property
    def factor(self) -> Tensor:
        """What multiplies the gradients, given or calibrated; zero until q predicts something."""
        factor, q = self.injection.factor, self.expected_row
        return factor if q is None else factor * q.is_better

    def begin_text(self) -> None:
        """Nothing to forget: no text that was read reaches into the next."""

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """Takes in the text; it is read when an estimate is asked for."""
        self._coming, self.window = beginning.coming, beginning.window
        self.index, self._gradients_PBS = 0, None

    def enter_window(self, incoming: LSTMState) -> None:
        """Moves on to the window's end."""
        self._incoming = incoming.detach()
        self.index += 1

    def estimate(self, outgoing: LSTMState) -> Tensor:
        """The gradient of what was read at that boundary, bounded, times the factor; or noise."""
        if self._gradients_PBS is None:
            self._read_at = self.index
            self._gradients_PBS = self._read_ahead(outgoing.detach())
        place = self.index - self._read_at
        if place >= len(self._gradients_PBS):
            return torch.zeros_like(self._gradients_PBS[0])
        gradient_BS = self._gradients_PBS[place]
        if self.injection.noise is not None:  # from a generator that no recording knows
            return self._inject(gradient_BS)
        return self.calls.run("inject", self._inject, gradient_BS)

    def end_window(self, observation: Observation) -> Agreement | None:
        """Measures on a probe; then q learns from the window, of long ones once a stretch."""
        on_probe = self._measure(observation) if observation.probe else None
        learns = self.index == 1 or reads_along(self.window, self.reach)
        if learns and self.expected_row is not None and observation.features is not None:
            self.row_lessons.learn(observation.features)
        return on_probe

    def status(self) -> EstimatorStatus:
        """For logs; waits for the device."""
        factor, q = float(self.factor), self.expected_row
        return EstimatorStatus(
            factor=factor,
            is_calibrated=self.injection.fixed_factor is None,
            explained=self.trust.explained(factor),
            probes=int(self.trust.count),
            capped=float(self.injection.capped) if self.injection.bounded else None,
            echo=0.0,  # no target contains a prediction
            is_finite=q is None or all(bool(p.isfinite().all()) for p in q.parameters()),
        )

    def residual(self, outputs_CBH: Tensor, targets_CB: Tensor) -> Tensor:
        """∂(nats)/∂(each output): predicted, or the true one."""
        if self.expected_row is None:
            residual_CBH = softmax_residual(self.model, outputs_CBH, targets_CB)
        else:
            with torch.no_grad():
                clusters_CB = self.model.clusters_of(targets_CB)
                expected_CBH: Tensor = self.expected_row(outputs_CBH, clusters_CB)
                residual_CBH = residual_of(self.model, expected_CBH, targets_CB)
        if not self.activation:
            return residual_CBH
        # Of α·mean(h²) for each token (`sglm.kernels.dropout`).
        return residual_CBH + 2 * self.activation / outputs_CBH.shape[-1] * outputs_CBH

    def _inject(self, gradient_BS: Tensor) -> Tensor:
        injected_BS = self.injection.inject(gradient_BS / self.trust.unit)
        q = self.expected_row
        return injected_BS if q is None else injected_BS * q.is_better

    def _text(self, first: int, last: int | None) -> ComingText:
        """From one of the stretch's boundaries to another, or as far as it is shown."""
        assert self._coming is not None, "no stretch has begun: the batcher must look ahead"
        end = None if last is None else last * self.window
        return ComingText(*(ids_CB[first * self.window : end] for ids_CB in self._coming))

    def _of_lane_before(self, text: ComingText) -> ComingText:
        every = [self.ranks.gather(ids_CB, dim=1).roll(1, dims=1) for ids_CB in text]
        return ComingText(*(self.ranks.own(ids_CB, dim=1) for ids_CB in every))

    def _read_ahead(self, outgoing: LSTMState) -> Tensor:
        """Gradients at this boundary, and at the stretch's further ones if they are near."""
        text = self._text(self.index, None)
        if self.other_lane:
            text = self._of_lane_before(text)
        if reads_along(self.window, self.reach):
            return self._read(outgoing, text, boundaries=self.stretch - self.index + 1)
        return self._read(outgoing, _first_steps(text, self.reach), boundaries=1)

    def _read(self, state: LSTMState, text: ComingText, *, boundaries: int) -> Tensor:
        """Gradients at so many boundaries; zero where no text follows."""
        with_text = min(boundaries, -(-len(text.inputs_CB) // self.window))
        packed_BS = state.packed()
        gradients_PBS = packed_BS.new_zeros(boundaries, *packed_BS.shape)
        if with_text > 0:
            tensors = (*text, *state.hidden, *state.cell)
            read = partial(self._read_text, boundaries=with_text)
            name = ("read", with_text, self.window)
            gradients_PBS[:with_text] = self.calls.run(name, read, *tensors)
        return gradients_PBS

    def _read_text(
        self, inputs_CB: Tensor, targets_CB: Tensor, *state: Tensor, boundaries: int
    ) -> Tensor:
        return self.way_back(
            self.model,
            LSTMState.from_parts(state),
            ComingText(inputs_CB, targets_CB),
            window=self.window,
            boundaries=boundaries,
            residual=self.residual,
        )

    def _measure(self, observation: Observation) -> Agreement:
        """Compares with a prediction at the window's start, for which the window's own text alone
        is read, as far as the reach: nothing was injected at its end, so the observed gradient is
        of this text too."""
        assert self._incoming is not None, "enter_window comes before end_window"
        text = _first_steps(self._text(self.index - 1, self.index), self.reach)
        (predicted_BS,) = self._read(self._incoming, text, boundaries=1)
        observed_BS = observation.gradient_BS
        self.trust.observe(self.injection.bound(predicted_BS), observed_BS)
        return agreement(predicted_BS, observed_BS, self.ranks)

    def state_dict(self) -> dict[str, Any]:
        """Everything that steps change, of all ranks' lanes; to be called by all of them.

        The gradients are saved: they cannot be read again once the weights have moved.
        """
        coming = [] if self._coming is None else [self.ranks.gather(x, dim=1) for x in self._coming]
        q = self.expected_row
        return {
            "expected_row": None if q is None else q.state_dict(),
            "optimizer": None if q is None else self.row_lessons.optimizer.state_dict(),
            "trust": self.trust.state_dict(),
            "injection": self.injection.state_dict(),
            "lessons": 0 if q is None else self.row_lessons.count,
            "window": self.window,
            "index": self.index,
            "read_at": self._read_at,
            "coming": coming,
            "gradients": every_lane(self.ranks, self._gradients_PBS, dim=1),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave, as far as it is this rank's."""
        device = self.model.embedding.device
        if self.expected_row is not None:
            self.expected_row.load_state_dict(tree["expected_row"])
            self.row_lessons.load_optimizer(tree["optimizer"])
            self.row_lessons.count = tree["lessons"]
        self.trust.load_state_dict(tree["trust"])
        self.injection.load_state_dict(tree["injection"])
        self.window, self.index, self._read_at = tree["window"], tree["index"], tree["read_at"]
        coming = [self.ranks.own(ids_CB, dim=1).to(device) for ids_CB in tree["coming"]]
        self._coming = ComingText(*coming) if coming else None
        self._gradients_PBS = own_lanes(self.ranks, tree["gradients"], device, dim=1)


def reads_along(window: int, reach: int) -> bool:
    """Whether one reading is for all boundaries of a stretch, or for the first one alone.

    The text between boundaries that are further apart than a reading reaches is read for nothing.
    """
    return window < reach


def _first_steps(text: ComingText, steps: int) -> ComingText:
    return ComingText(*(ids_CB[:steps] for ids_CB in text))


def adjoint_parameters(settings: SynthesizerConfig, shape: ModelShape) -> int:
    """Weights of q, where there is one."""
    if residual_is_cheap(shape):
        return 0
    with torch.device("meta"):
        clusters = 1 + len(shape.cutoffs)
        q = ExpectedRow(shape.widths[-1], hidden_units(settings), clusters=clusters)
    return sum(parameter.numel() for parameter in q.parameters())


def adjoint_floats(
    settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis, *, window: int, stretch: int
) -> tuple[float, float]:
    """What an adjoint keeps from one reading to the next, and what it needs while it reads.

    Args:
        settings, shape: of the estimator and the model.
        basis: for which lanes, where.
        window: T.
        stretch: windows from reading to reading.
    """
    boundaries = stretch if reads_along(window, settings.reach) else 1
    steps, last = (boundaries - 1) * window + settings.reach, shape.widths[-1]
    # Outputs end to end, expected rows, residuals.
    read = 3.0 * basis.lanes * steps * last
    if settings.kind == "adjoint":
        read += activation_floats(shape, DropoutRates(), basis, steps=steps, calls=1, random=False)
        read += layer_backward_floats(shape.input_widths[-1], last, basis, steps=steps)
    else:
        read += feedback_floats(settings.kind, shape, basis, steps=steps)
    return boundaries * basis.lanes * shape.state_size, read
