"""A gauge in parameter space: do injected gradients move the weights as the exact future would?

The share of a state gradient that an estimator explains says little about its use: most of that
gradient has mean zero given the past and moves no weight in the long run. What does move the
weights are the means of Jᵀŝ and Jᵀg, where J = ∂s/∂θ, ŝ is the gradient injected after a window,
and g is the gradient that a longer exact backward pass would have sent back there. A product of two
such vectors over *the same* lanes also counts the part with mean zero. So each vector is computed
twice, from disjoint halves of the lanes, and only products across the halves are used: their mean
is the product of the means. Before that, the mean over the lanes of a half is subtracted from both
state gradients. This shared part does not depend on a lane's own coming text: gradients read from
another lane's text contain it too, and do great harm (docs/results.md, "Foresight, not noise").
What remains is the covariance of J with the gradients.

    beta   = ⟨Jᵀŝ, Jᵀg⟩ / ⟨Jᵀŝ, Jᵀŝ⟩      the best factor for the injected gradient
    cosine = ⟨Jᵀŝ, Jᵀg⟩ / √(⟨Jᵀŝ, Jᵀŝ⟩·⟨Jᵀg, Jᵀg⟩)

Shapes: T steps of a window, R steps of coming text, B lanes, S coordinates of a lane's state.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sglm.dni.adjoint_pass import adjoint_gradients
from sglm.dni.expected_row import softmax_residual
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape, without_dropout
from sglm.model.lstm_layer import layer_backward_floats
from sglm.model.memory import activation_floats
from sglm.model.state import LSTMState
from sglm.runtime.memory_basis import MemoryBasis
from sglm.runtime.ranks import ALONE, Ranks
from sglm.text.batcher import ComingText

REFERENCE_STEPS = 20  # steps of coming text whose exact gradient is the reference
FEWEST_LANES = 4  # a half of one lane would be zero after its mean is subtracted
# A measurement takes as long as one to two long windows, or as three windows of five tokens. From
# one measurement to the next there are this many windows for the measured window itself, and as
# many again for each window, complete or not, that `REFERENCE_STEPS` cover.
_WINDOWS_BETWEEN = 50
_MEAN_OVER = 100  # measurements; they are noisy, and the measured quantity changes slowly


def gauge_every(window: int, *, injects_once: bool = False) -> int:
    """Returns the number of windows between measurements, for under two percent of the time.

    Args:
        window: T.
        injects_once: Whether gradients are injected at few windows only. Measurements then take
            under one percent of the time.
    """
    return (1 + injects_once) * _WINDOWS_BETWEEN * (1 + math.ceil(REFERENCE_STEPS / window))


class GaugeReading(NamedTuple):
    """The mean of the latest measurements; NaN where a product that must be positive is not.

    Attributes:
        windows: Number of windows measured over the whole run.
        beta: ⟨Jᵀŝ, Jᵀg⟩ / ⟨Jᵀŝ, Jᵀŝ⟩, the best factor for the injected gradient.
        cosine: ⟨Jᵀŝ, Jᵀg⟩ / √(⟨Jᵀŝ, Jᵀŝ⟩·⟨Jᵀg, Jᵀg⟩); noise can lift it above 1.
        share: ⟨Jᵀŝ, Jᵀg⟩ / ⟨Jᵀg, Jᵀg⟩, the share of the exact future's effect on the weights that
            the injected gradients had.
        noise: The larger of the relative standard errors of ⟨Jᵀŝ, Jᵀg⟩ and ⟨Jᵀg, Jᵀg⟩. Above ½ the
            other numbers mean next to nothing.
    """

    windows: int
    beta: float
    cosine: float
    share: float
    noise: float


class Gauge:
    """The running means of the products of Jᵀŝ and Jᵀg.

    It draws no random numbers, and waits for the device only in `reading` and where an adaptive
    softmax has to.

    Args:
        device: Device of the lanes.
        ranks: The processes that share the lanes.
    """

    def __init__(self, device: torch.device, *, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.windows = torch.zeros((), device=device)
        # Running means of ⟨Jᵀŝ, Jᵀg⟩, ⟨Jᵀŝ, Jᵀŝ⟩, ⟨Jᵀg, Jᵀg⟩ across the halves, in units of each
        # window's own ‖Jᵀg‖²; and of their squares.
        self.means = torch.zeros(3, device=device, dtype=torch.float64)
        self.squares = torch.zeros(3, device=device, dtype=torch.float64)

    def observe(
        self,
        model: LSTMLanguageModel,
        incoming: LSTMState,
        inputs_TB: Tensor,
        *,
        injected_BS: Tensor,
        coming: ComingText,
    ) -> None:
        """Measures one window, with the model's current weights and without dropout.

        Args:
            model: The model; gradients are taken with respect to its LSTM weights.
            incoming: State before the window.
            inputs_TB: Token ids of the window. With fewer than `FEWEST_LANES` lanes nothing is
                measured.
            injected_BS: State gradient injected after the window, in nats.
            coming: Text that follows the window, R steps.
        """
        # One half at a time: a backward pass from half of the lanes takes half as long.
        half = inputs_TB.shape[1] // 2
        halves = (slice(half), slice(half, None))
        ends = [_end_of(model, incoming, inputs_TB, lanes=lanes) for lanes in halves]
        outgoing_BS = torch.cat([end.packed().detach() for end in ends])
        (exact_BS,) = adjoint_gradients(
            model,
            LSTMState.from_parts(incoming.parts_of(outgoing_BS)),
            coming,
            window=len(coming.inputs_CB),
            boundaries=1,
            residual=partial(softmax_residual, model),
        )
        effects = [
            _effect(model, end, gradient_BS[lanes])
            for gradient_BS in (injected_BS, exact_BS)
            for end, lanes in zip(ends, halves, strict=True)
        ]
        for effect in effects:
            self.ranks.average(effect)
        injected_first, injected_second, exact_first, exact_second = effects
        both = _product(injected_first, exact_second) + _product(injected_second, exact_first)
        injected, exact = (
            _product(injected_first, injected_second),
            _product(exact_first, exact_second),
        )
        # Normalized, to give every window the same weight: early gradients are many times as long.
        lengths = _product(exact_first, exact_first) * _product(exact_second, exact_second)
        products = torch.stack((both / 2, injected, exact)).double() / lengths.double().sqrt()
        finite = products.isfinite().all()
        self.windows += finite
        weight = 1 / self.windows.clamp(1, _MEAN_OVER).double()
        for mean, new in ((self.means, products), (self.squares, products.square())):
            mean.copy_(torch.where(finite, mean + weight * (new - mean), mean))

    def reading(self) -> GaugeReading:
        """Returns the result of all measurements; waits for the device."""
        windows = int(self.windows)
        both, injected, exact = self.means.tolist()
        counted = max(1, min(windows, _MEAN_OVER) - 1)
        errors = ((self.squares - self.means.square()).clamp_min(0) / counted).sqrt()
        noise = (errors / self.means.abs())[[0, 2]].max()
        return GaugeReading(
            windows=windows,
            beta=both / injected if injected > 0 else math.nan,
            cosine=both / math.sqrt(injected * exact) if min(injected, exact) > 0 else math.nan,
            share=both / exact if exact > 0 else math.nan,
            noise=float(noise) if windows > 1 else math.inf,
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything that windows change; it is the same on all ranks."""
        return {"windows": self.windows, "means": self.means, "squares": self.squares}

    def load_state_dict(self, tree: dict[str, Tensor]) -> None:
        """Restores what `state_dict` returned."""
        for name, value in self.state_dict().items():
            value.copy_(tree[name])


def _end_of(
    model: LSTMLanguageModel, incoming: LSTMState, inputs_TB: Tensor, *, lanes: slice
) -> LSTMState:
    """Returns the state of some lanes after the window, with its graph."""
    hidden, cell = ([part[lanes].detach() for part in parts] for parts in incoming)
    with torch.enable_grad(), without_dropout(model):
        embedded_TBE = model.word_vectors(inputs_TB[:, lanes])
        _, outgoing = model.outputs(embedded_TBE, LSTMState(tuple(hidden), tuple(cell)))
    return outgoing


def _effect(model: LSTMLanguageModel, end: LSTMState, gradient_BS: Tensor) -> tuple[Tensor, ...]:
    """Returns Jᵀ·(state gradient − its mean over the lanes): a tensor for each weight matrix and
    bias of the LSTM."""
    return torch.autograd.grad(
        (*end.hidden, *end.cell),
        list(model.layers.parameters()),
        end.parts_of(gradient_BS - gradient_BS.mean(0)),
        retain_graph=True,
    )


def _product(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """Returns ⟨left, right⟩ over all weights, a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def gauge_floats(
    shape: ModelShape, basis: MemoryBasis, *, window: int, processes: int = 1
) -> float:
    """Returns the floats that one measurement holds after the window's own pass is over.

    Args:
        shape: Shape of the model.
        basis: Number of lanes, and where they are computed.
        window: T.
        processes: Number of processes, which average their measurements.
    """
    kept, last = 0.0, shape.widths[-1]
    for steps in (window, REFERENCE_STEPS):
        kept += activation_floats(shape, DropoutRates(), basis, steps=steps, calls=1, random=False)
    effects = (4 + (processes > 1)) * sum(shape.layer_weights)
    backward = layer_backward_floats(shape.input_widths[-1], last, basis, steps=window)
    return kept + effects + backward + 3 * basis.lanes * REFERENCE_STEPS * last
