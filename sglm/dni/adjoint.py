"""The adjoint estimator: state gradients by backpropagating the coming text through the LSTM.

Let h be the features before the softmax. By the chain rule, the gradient of the future nats with
respect to a state follows from ∂(nats)/∂h at every coming step, by backpropagation through the
LSTM. For softmax and cross-entropy, ∂(nats)/∂h = Wᵀ·p(h) − W[y]. The second term is known; only the
*expected row* Wᵀ·p(h) requires a softmax. A small network q learns to predict this row; its targets
∂(nats)/∂h + W[y] come from the training loss, which computes ∂(nats)/∂h in any case. One forward
and one backward pass through the LSTM then predict the state gradient. Nothing is bootstrapped:
q's targets contain none of its own predictions.

Shapes: C steps of coming text, T steps of a window, B lanes, H features, V vocabulary, S
coordinates of a lane's state, P boundaries.
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
from sglm.runtime.ranks import ALONE, Ranks, gather_lanes, own_lanes
from sglm.text.batcher import ComingText


class AdjointEstimator:
    """An estimator that reads the coming text and computes state gradients from it.

    A reading takes place at the first window of a stretch for which an estimate is requested, and
    begins at that window's outgoing state. If windows are shorter than the reach, it also serves
    the stretch's later boundaries, whose gradients are kept and age until they are injected. With
    longer windows this would cost too much: a stretch then has one injection and one lesson for q.
    Text is read only if something is injected, and on probes, which read the window that they
    measure, up to the reach.

    Nothing is injected until q predicts better than the mean of its targets
    (`ExpectedRow.is_better`). Readings use no dropout and therefore draw no random numbers.

    Args:
        model: The language model, used with its current weights.
        stretch: Number of windows from one reading to the next. The batcher must show the text of
            these windows and what is to be read beyond them.
        reach: Number of steps that a reading extends beyond the last boundary that it serves.
        learning_rate: Learning rate of q's own Adam.
        factor: Factor by which gradients are multiplied before injection. None: calibrated on
            probes (`Trust.factor`), where prediction and observation both cover one window.
        trust_bound: Whether each lane's gradient is capped (`Trust.longest`).
        activation: Coefficient α of the activation penalty, whose gradient is added to the
            residual. (The temporal penalty is left out.)
        exact: Whether to compute the softmax's residual, without q, instead of predicting it. None:
            only if the vocabulary is so small that this costs no more (`residual_is_cheap`).
        hidden: Number of units in q's hidden layer.
        noise: Generator of random directions, which are injected with the gradient's length in its
            place (a control). None: the gradient itself.
        other_lane: Whether the preceding lane's text is read instead of the lane's own (a control).
        way_back: Function from residuals to state gradients.
        calls: How readings, injections and q's lessons are called.
        ranks: The processes that share the lanes.
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
    def wants_features(self) -> bool:
        """Whether gradients at the features are needed: q learns from them."""
        return self.expected_row is not None

    @property
    def factor(self) -> Tensor:
        """The factor of the gradients, given or calibrated; zero until `ExpectedRow.is_better`."""
        factor, q = self.injection.factor, self.expected_row
        return factor if q is None else factor * q.is_better

    def begin_text(self) -> None:
        """Does nothing: no reading extends into the next text."""

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        """Stores the stretch's text, which is read when an estimate is requested."""
        self._coming, self.window = beginning.coming, beginning.window
        self.index, self._gradients_PBS = 0, None

    def enter_window(self, incoming: LSTMState) -> None:
        """Stores the incoming state and advances to the window's end."""
        self._incoming = incoming.detach()
        self.index += 1

    def estimate(self, outgoing: LSTMState) -> Tensor:
        """Returns the gradient at that boundary, bounded, times the factor; or noise."""
        if self._gradients_PBS is None:
            self._read_at = self.index
            self._gradients_PBS = self._read_ahead(outgoing.detach())
        place = self.index - self._read_at
        if place >= len(self._gradients_PBS):
            return torch.zeros_like(self._gradients_PBS[0])
        gradient_BS = self._gradients_PBS[place]
        if self.injection.noise is not None:  # its generator cannot be part of a recording
            return self._inject(gradient_BS)
        return self.calls.run("inject", self._inject, gradient_BS)

    def end_window(self, observation: Observation) -> Agreement | None:
        """Measures on a probe; then q learns, from long windows only once per stretch."""
        on_probe = self._measure(observation) if observation.probe else None
        learns = self.index == 1 or one_reading_serves_stretch(self.window, self.reach)
        if learns and self.expected_row is not None and observation.features is not None:
            self.row_lessons.learn(observation.features)
        return on_probe

    def status(self) -> EstimatorStatus:
        """Returns the estimator's status for logs; waits for the device."""
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
        """Returns ∂(nats)/∂outputs, `(C, B, H)`: with q's predictions, or exact without q."""
        if self.expected_row is None:
            residual_CBH = softmax_residual(self.model, outputs_CBH, targets_CB)
        else:
            with torch.no_grad():
                clusters_CB = self.model.clusters_of(targets_CB)
                expected_CBH: Tensor = self.expected_row(outputs_CBH, clusters_CB)
                residual_CBH = residual_of(self.model, expected_CBH, targets_CB)
        if not self.activation:
            return residual_CBH
        # Add the gradient of the penalty, α·mean(h²) for each token (`sglm.kernels.dropout`).
        return residual_CBH + 2 * self.activation / outputs_CBH.shape[-1] * outputs_CBH

    def _inject(self, gradient_BS: Tensor) -> Tensor:
        injected_BS = self.injection.inject(gradient_BS / self.trust.unit)
        q = self.expected_row
        return injected_BS if q is None else injected_BS * q.is_better

    def _text(self, first: int, last: int | None) -> ComingText:
        """Returns the text between two boundaries of the stretch; `last` None: all from `first`."""
        assert self._coming is not None, "no stretch has begun: the batcher must look ahead"
        end = None if last is None else last * self.window
        return ComingText(*(ids_CB[first * self.window : end] for ids_CB in self._coming))

    def _of_previous_lane(self, text: ComingText) -> ComingText:
        every = [self.ranks.gather(ids_CB, dim=1).roll(1, dims=1) for ids_CB in text]
        return ComingText(*(self.ranks.own(ids_CB, dim=1) for ids_CB in every))

    def _read_ahead(self, outgoing: LSTMState) -> Tensor:
        """Returns gradients at this boundary and, if windows are short, at the later ones."""
        text = self._text(self.index, None)
        if self.other_lane:
            text = self._of_previous_lane(text)
        if one_reading_serves_stretch(self.window, self.reach):
            return self._read(outgoing, text, boundaries=self.stretch - self.index + 1)
        return self._read(outgoing, _first_steps(text, self.reach), boundaries=1)

    def _read(self, state: LSTMState, text: ComingText, *, boundaries: int) -> Tensor:
        """Returns gradients at `boundaries` successive boundaries; zero where no text follows."""
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
        """Compares the observed gradient with a prediction at the window's start.

        The prediction reads only the window's own text, up to the reach: because nothing was
        injected at the window's end, the observed gradient depends on this text alone.
        """
        assert self._incoming is not None, "enter_window comes before end_window"
        text = _first_steps(self._text(self.index - 1, self.index), self.reach)
        (predicted_BS,) = self._read(self._incoming, text, boundaries=1)
        observed_BS = observation.gradient_BS
        self.trust.observe(self.injection.bound(predicted_BS), observed_BS)
        return agreement(predicted_BS, observed_BS, self.ranks)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that steps change, for all ranks' lanes; every rank must call it.

        The gradients are saved because they cannot be computed again once the weights have moved.
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
            "gradients": gather_lanes(self.ranks, self._gradients_PBS, dim=1),
        }

    def load_state_dict(self, tree: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, as far as it belongs to this rank."""
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


def one_reading_serves_stretch(window: int, reach: int) -> bool:
    """Returns whether one reading serves all boundaries of a stretch, and not only its first.

    If boundaries are further apart than the reach, part of the text between them would be read for
    nothing.
    """
    return window < reach


def _first_steps(text: ComingText, steps: int) -> ComingText:
    return ComingText(*(ids_CB[:steps] for ids_CB in text))


def adjoint_parameters(settings: SynthesizerConfig, shape: ModelShape) -> int:
    """Returns the number of q's parameters; 0 if the residual is computed without q."""
    if residual_is_cheap(shape):
        return 0
    with torch.device("meta"):
        clusters = 1 + len(shape.cutoffs)
        q = ExpectedRow(shape.widths[-1], hidden_units(settings), clusters=clusters)
    return sum(parameter.numel() for parameter in q.parameters())


def adjoint_floats(
    settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis, *, window: int, stretch: int
) -> tuple[float, float]:
    """Returns the floats that an adjoint keeps between readings, and those that a reading needs.

    Args:
        settings, shape: Settings of the estimator and shape of the model.
        basis: Number of lanes, and where they are computed.
        window: T.
        stretch: Number of windows from one reading to the next.
    """
    boundaries = stretch if one_reading_serves_stretch(window, settings.reach) else 1
    steps, last = (boundaries - 1) * window + settings.reach, shape.widths[-1]
    # The concatenated outputs, the expected rows and the residuals.
    read = 3.0 * basis.lanes * steps * last
    if settings.kind == "adjoint":
        read += activation_floats(shape, DropoutRates(), basis, steps=steps, calls=1, random=False)
        read += layer_backward_floats(shape.input_widths[-1], last, basis, steps=steps)
    else:
        read += feedback_floats(settings.kind, shape, basis, steps=steps)
    return boundaries * basis.lanes * shape.state_size, read
