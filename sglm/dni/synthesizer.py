"""Networks that predict a state gradient from the state.

A *state gradient* is ∂(Σ future nats of a lane)/∂s, one vector a lane, not divided by batch or
window. Shapes: B lanes, S coordinates of a lane's state (hidden and cell of all layers), N units
of the net. Every last layer starts at zero, so that training starts as plain truncation
(Jaderberg et al. 2017).
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn


class Prediction(NamedTuple):
    """What a synthesizer says of the states that it read.

    Attributes:
        gradient_BS: the predicted state gradient.
        next_gradient_BS: the auxiliary guess of the gradient one window later, or None.
        memory: what it wants to be given with the lanes' next states, or None.
    """

    gradient_BS: Tensor
    next_gradient_BS: Tensor | None
    memory: Tensor | None


class Synthesizer(nn.Module, ABC):
    """Interface: `(state_BS, memory) -> Prediction`. Without memory, None goes in and comes out."""

    @abstractmethod
    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        """Predicts.

        Args:
            state_BS: packed state, detached.
            memory: what the previous call on these lanes returned, detached; None at their start.
        """


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that returns zero until it has learned something."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class LinearSynthesizer(Synthesizer):
    """ŝ = W·s + b. Enough for linear networks (Czarnecki et al. 2017, sec. 4), and the least
    noisy where targets are mostly noise."""

    def __init__(self, size: int, auxiliary: bool = False) -> None:
        super().__init__()
        self.heads = zero_linear(size, size * (2 if auxiliary else 1))
        self.size = size

    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        gradient_BS, *rest = self.heads(state_BS).split(self.size, dim=1)
        return Prediction(gradient_BS, rest[0] if rest else None, None)


class MLPSynthesizer(Synthesizer):
    """One hidden layer over all hidden and cell states (Jaderberg et al. 2017, sec. 3.1)."""

    def __init__(self, size: int, hidden: int, auxiliary: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(size, hidden), nn.ReLU())
        self.heads = zero_linear(hidden, size * (2 if auxiliary else 1))
        self.size = size

    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        gradient_BS, *rest = self.heads(self.trunk(state_BS)).split(self.size, dim=1)
        return Prediction(gradient_BS, rest[0] if rest else None, None)


class RecurrentSynthesizer(Synthesizer):
    """One small GRU applied to every coordinate by itself, recurrent from window to window.

    The element-wise synthesizer of Shang & Zhang (2019, sec. 3), after the learned optimizers of
    Andrychowicz et al. (2016): the number of weights does not depend on the size of the state, and
    each coordinate carries N numbers of memory, `(B·S, N)`. The memory is truncated at every
    window.
    """

    def __init__(self, hidden: int, auxiliary: bool = False) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, hidden)
        self.cell = nn.GRUCell(hidden, hidden)
        self.heads = zero_linear(hidden, 2 if auxiliary else 1)

    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        coordinates_M1 = state_BS.reshape(-1, 1)
        memory_MN = self.cell(self.encoder(coordinates_M1), memory)
        gradient_BS, *rest = (
            head_M.view_as(state_BS) for head_M in self.heads(memory_MN).unbind(dim=1)
        )
        return Prediction(gradient_BS, rest[0] if rest else None, memory_MN.detach())


def make_synthesizer(kind: str, size: int, hidden: int, auxiliary: bool) -> Synthesizer:
    """The synthesizer of that kind for states of `size` coordinates."""
    if kind == "linear":
        return LinearSynthesizer(size, auxiliary)
    if kind == "mlp":
        return MLPSynthesizer(size, hidden, auxiliary)
    if kind == "recurrent":
        return RecurrentSynthesizer(hidden, auxiliary)
    raise ValueError(f"unknown synthesizer kind {kind!r}")
