"""Networks that predict a state gradient from the state.

A *state gradient* is ∂(Σ future nats of a lane)/∂s, one vector per lane, not divided by batch or
window. Shapes: B lanes, S coordinates of a lane's state (hidden and cell of all layers), M = B·S
coordinates of all lanes, N hidden units of the network. Every last layer starts at zero, so that
training starts as plain truncation (Jaderberg et al. 2017).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sglm.config import SynthesizerConfig
from sglm.model.language_model import ModelShape
from sglm.model.linear import Linear
from sglm.runtime.memory_basis import MemoryBasis


class Prediction(NamedTuple):
    """The prediction of a synthesizer at the states that it read, in its own unit.

    Attributes:
        gradient_BS: The state gradient.
        next_gradient_BS: The auxiliary prediction, of the gradient one window later, or None.
        recurrent_state: The state that a recurrent synthesizer needs with the lanes' next states.
    """

    gradient_BS: Tensor
    next_gradient_BS: Tensor | None
    recurrent_state: Tensor | None


class Synthesizer(nn.Module, ABC):
    """The interface of all synthesizers: `(state_BS, recurrent_state) -> Prediction`.

    `size` is S. If `auxiliary`, the synthesizer also predicts its own next prediction; if
    `is_recurrent`, it carries a state of its own from boundary to boundary.
    """

    is_recurrent = False

    def __init__(self, size: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.size = size
        self.auxiliary = auxiliary

    @abstractmethod
    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        """Predicts state gradients.

        Args:
            state_BS: Packed state, detached.
            recurrent_state: For a recurrent network, the one that the previous call on these lanes
                returned (None at their start); otherwise None.
        """


def zero_linear(inputs: int, outputs: int) -> Linear:
    """Returns a linear layer whose outputs are zero until it has learned something."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LinearSynthesizer(Synthesizer):
    """A linear map, ŝ = W·s + b. It suffices for linear networks (Czarnecki et al. 2017, sec. 4),
    and is the least noisy synthesizer where targets are mostly noise."""

    def __init__(self, size: int, *, auxiliary: bool = False) -> None:
        super().__init__(size, auxiliary=auxiliary)
        self.heads = zero_linear(size, size * (2 if auxiliary else 1))

    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        gradient_BS, *rest = self.heads(state_BS).split(self.size, dim=1)
        return Prediction(gradient_BS, rest[0] if rest else None, None)


class MLPSynthesizer(Synthesizer):
    """A network with one hidden layer over the whole state (Jaderberg et al. 2017, sec. 3.1)."""

    def __init__(self, size: int, hidden: int, *, auxiliary: bool = False) -> None:
        super().__init__(size, auxiliary=auxiliary)
        self.trunk = nn.Sequential(nn.Linear(size, hidden), nn.ReLU())
        self.heads = zero_linear(hidden, size * (2 if auxiliary else 1))

    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        gradient_BS, *rest = self.heads(self.trunk(state_BS)).split(self.size, dim=1)
        return Prediction(gradient_BS, rest[0] if rest else None, None)


class RecurrentSynthesizer(Synthesizer):
    """A small GRU applied to every coordinate separately, recurrent from window to window.

    It is the element-wise synthesizer of Shang & Zhang (2019, sec. 3), after the learned optimizers
    of Andrychowicz et al. (2016). The number of weights does not depend on the size of the state.
    Each coordinate carries N numbers, `(B·S, N)`; backpropagation ends at every window.
    """

    is_recurrent = True

    def __init__(self, size: int, hidden: int, *, auxiliary: bool = False) -> None:
        super().__init__(size, auxiliary=auxiliary)
        self.encoder = nn.Linear(1, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.heads = zero_linear(hidden, 2 if auxiliary else 1)

    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        memory_MN = self.cell(self.encoder(state_BS.reshape(-1, 1)), recurrent_state)
        gradient_BS, *rest = (
            predicted_M.view_as(state_BS) for predicted_M in self.heads(memory_MN).unbind(dim=1)
        )
        return Prediction(gradient_BS, rest[0] if rest else None, memory_MN.detach())


def make_synthesizer(kind: str, size: int, *, hidden: int, auxiliary: bool = False) -> Synthesizer:
    """Returns a synthesizer with fresh weights.

    Args:
        kind: "linear", "mlp" or "recurrent", as in `synthesizer.kind` of the configuration.
        size: S, the number of coordinates of the states that it reads.
        hidden: N, the number of its hidden units.
        auxiliary: Whether it also predicts the next window's gradient.

    Raises:
        ValueError: The kind is unknown.
    """
    if kind == "linear":
        return LinearSynthesizer(size, auxiliary=auxiliary)
    if kind == "mlp":
        return MLPSynthesizer(size, hidden, auxiliary=auxiliary)
    if kind == "recurrent":
        return RecurrentSynthesizer(size, hidden, auxiliary=auxiliary)
    raise ValueError(f"unknown synthesizer kind {kind!r}")


_HIDDEN_OF_KIND = {"recurrent": 50, "linear": 0}
_HIDDEN = 128  # of all other kinds


def hidden_units(settings: SynthesizerConfig) -> int:
    """Returns the number of units in the hidden layer; the default depends on the kind."""
    return settings.hidden or _HIDDEN_OF_KIND.get(settings.kind, _HIDDEN)


def build_synthesizer(settings: SynthesizerConfig, shape: ModelShape) -> Synthesizer:
    """Builds the configured synthesizer for the states of a model of this shape."""
    return make_synthesizer(
        settings.kind,
        shape.state_size,
        hidden=hidden_units(settings),
        auxiliary=settings.auxiliary,
    )


def synthesizer_parameters(settings: SynthesizerConfig, shape: ModelShape) -> int:
    """Returns the number of parameters of the configured synthesizer."""
    with torch.device("meta"):
        synthesizer = build_synthesizer(settings, shape)
    return sum(parameter.numel() for parameter in synthesizer.parameters())


# The most floats that a GRU cell made of elementary operations holds, per number of its state:
# while it predicts, and while it learns.
GRU_PREDICTS, GRU_LEARNS = 9, 12


def recurrent_state_floats(
    settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis
) -> int:
    """Returns the floats that a recurrent synthesizer carries: N for each state coordinate."""
    if settings.kind != "recurrent":
        return 0
    return basis.lanes * shape.state_size * hidden_units(settings)
