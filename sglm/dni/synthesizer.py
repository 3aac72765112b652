"""Networks that predict a state gradient from the state.

A *state gradient* is ∂(Σ future nats of a lane)/∂s, one vector a lane, not divided by batch or
window. Shapes: B lanes, S coordinates of a lane's state (hidden and cell of all layers), M those of
all lanes, N units and K heads of the net. Every last layer starts at zero, so that training starts
as plain truncation (Jaderberg et al. 2017).
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
    """What a synthesizer predicts at the states that it read, in its own unit.

    Attributes:
        gradient_BS: the state gradient.
        next_gradient_BS: the auxiliary prediction, of the gradient one window later, or None.
        recurrent_state: what a recurrent synthesizer is to be given with the lanes' next states.
    """

    gradient_BS: Tensor
    next_gradient_BS: Tensor | None
    recurrent_state: Tensor | None


class Synthesizer(nn.Module, ABC):
    """Interface: `(state_BS, recurrent_state) -> Prediction`.

    `size` is S. An `auxiliary` one also predicts its own next prediction; one that `is_recurrent`
    carries a state of its own from boundary to boundary.
    """

    is_recurrent = False

    def __init__(self, size: int, *, auxiliary: bool = False) -> None:
        super().__init__()
        self.size = size
        self.auxiliary = auxiliary

    @abstractmethod
    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        """Predicts.

        Args:
            state_BS: packed state, detached.
            recurrent_state: for a recurrent net, what the previous call on these lanes returned as
                such (None at their start); otherwise None.
        """


def zero_linear(inputs: int, outputs: int) -> Linear:
    """A linear layer that returns zero until it has learned something."""
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LinearSynthesizer(Synthesizer):
    """ŝ = W·s + b. Enough for linear networks (Czarnecki et al. 2017, sec. 4), and the least
    noisy where targets are mostly noise."""

    def __init__(self, size: int, *, auxiliary: bool = False) -> None:
        super().__init__(size, auxiliary=auxiliary)
        self.heads = zero_linear(size, size * (2 if auxiliary else 1))

    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        gradient_BS, *rest = self.heads(state_BS).split(self.size, dim=1)
        return Prediction(gradient_BS, rest[0] if rest else None, None)


class MLPSynthesizer(Synthesizer):
    """One hidden layer over all hidden and cell states (Jaderberg et al. 2017, sec. 3.1)."""

    def __init__(self, size: int, hidden: int, *, auxiliary: bool = False) -> None:
        super().__init__(size, auxiliary=auxiliary)
        self.trunk = nn.Sequential(nn.Linear(size, hidden), nn.ReLU())
        self.heads = zero_linear(hidden, size * (2 if auxiliary else 1))

    def forward(self, state_BS: Tensor, recurrent_state: Tensor | None = None) -> Prediction:
        gradient_BS, *rest = self.heads(self.trunk(state_BS)).split(self.size, dim=1)
        return Prediction(gradient_BS, rest[0] if rest else None, None)


class RecurrentSynthesizer(Synthesizer):
    """One small GRU applied to every coordinate by itself, recurrent from window to window.

    The element-wise synthesizer of Shang & Zhang (2019, sec. 3), after the learned optimizers of
    Andrychowicz et al. (2016): the number of weights does not depend on the size of the state, and
    each coordinate carries N numbers, `(B·S, N)`, truncated at every window.
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
    """A synthesizer with fresh weights.

    Args:
        kind: as `synthesizer.kind` in the configuration.
        size: S, coordinates of the states that it reads.
        hidden: N, units of its hidden layer.
        auxiliary: whether it also predicts the next window's gradient.

    Raises:
        ValueError: no such kind.
    """
    if kind == "linear":
        return LinearSynthesizer(size, auxiliary=auxiliary)
    if kind == "mlp":
        return MLPSynthesizer(size, hidden, auxiliary=auxiliary)
    if kind == "recurrent":
        return RecurrentSynthesizer(size, hidden, auxiliary=auxiliary)
    raise ValueError(f"unknown synthesizer kind {kind!r}")


_HIDDEN_OF_KIND = {"recurrent": 50, "linear": 0}
_HIDDEN = 128  # of all others


def hidden_units(settings: SynthesizerConfig) -> int:
    """Units of the hidden layer."""
    return settings.hidden or _HIDDEN_OF_KIND.get(settings.kind, _HIDDEN)


def build_synthesizer(settings: SynthesizerConfig, shape: ModelShape) -> Synthesizer:
    """The synthesizer that the configuration asks for, for the states of such a model."""
    return make_synthesizer(
        settings.kind,
        shape.state_size,
        hidden=hidden_units(settings),
        auxiliary=settings.auxiliary,
    )


def parameter_count(settings: SynthesizerConfig, shape: ModelShape) -> int:
    """Weights of that synthesizer."""
    with torch.device("meta"):
        synthesizer = build_synthesizer(settings, shape)
    return sum(parameter.numel() for parameter in synthesizer.parameters())


# A GRU cell made of small operations, per number of its state: at most while it predicts, and while
# it learns.
GRU_PREDICTS, GRU_LEARNS = 9, 12


def recurrent_state_floats(
    settings: SynthesizerConfig, shape: ModelShape, basis: MemoryBasis
) -> int:
    """What a recurrent synthesizer carries: its units for every coordinate of the lanes' states."""
    if settings.kind != "recurrent":
        return 0
    return basis.lanes * shape.state_size * hidden_units(settings)
