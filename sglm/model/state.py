"""The state that an LSTM stack carries from one window to the next.

Shapes: B lanes, H_l units of layer l, S = 2·(H_1 + … + H_L) coordinates of the whole state.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LSTMState(NamedTuple):
    """The hidden and cell states of every layer, each `(B, H_l)`; with or without a graph."""

    hidden: tuple[Tensor, ...]
    cell: tuple[Tensor, ...]

    @classmethod
    def zeros(
        cls,
        batch: int,
        widths: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "LSTMState":
        """Returns the start state of `batch` lanes for layers of the given widths."""

        def empty() -> tuple[Tensor, ...]:
            return tuple(torch.zeros(batch, width, device=device, dtype=dtype) for width in widths)

        return cls(empty(), empty())

    def detach(self) -> "LSTMState":
        """Returns the same numbers, detached from the graph: backpropagation is truncated here."""
        return LSTMState(
            tuple(part.detach() for part in self.hidden), tuple(part.detach() for part in self.cell)
        )

    def as_leaf(self) -> "LSTMState":
        """Returns the same numbers as leaves of a new graph; a backward pass fills `.grad`."""
        return LSTMState(
            tuple(part.detach().requires_grad_() for part in self.hidden),
            tuple(part.detach().requires_grad_() for part in self.cell),
        )

    def finite_or_zero(self) -> "LSTMState":
        """Returns the same numbers, or the start state if one of them is not finite.

        This is decided on the device, without a synchronization.
        """
        finite = torch.isfinite(self.packed()).all()
        return LSTMState(
            tuple(part.where(finite, 0.0) for part in self.hidden),
            tuple(part.where(finite, 0.0) for part in self.cell),
        )

    def lanes(self, index: Tensor) -> "LSTMState":
        """Returns the state of the lanes that `index` lists, in its order."""
        return LSTMState(
            tuple(part.index_select(0, index) for part in self.hidden),
            tuple(part.index_select(0, index) for part in self.cell),
        )

    def packed(self) -> Tensor:
        """Returns all layers' hidden, then all layers' cell states side by side: `(B, S)`."""
        return torch.cat((*self.hidden, *self.cell), dim=1)

    @classmethod
    def from_parts(cls, parts: Sequence[Tensor]) -> "LSTMState":
        """Returns the state that consists of the parts `(*hidden, *cell)`."""
        layers = len(parts) // 2
        return cls(tuple(parts[:layers]), tuple(parts[layers:]))

    def parts_of(self, packed_BS: Tensor) -> tuple[Tensor, ...]:
        """Returns the columns of a packed tensor that belong to each of `(*hidden, *cell)`."""
        widths = [part.shape[1] for part in (*self.hidden, *self.cell)]
        return torch.split(packed_BS, widths, dim=1)

    def packed_gradient(self) -> Tensor:
        """Returns the `.grad` of a leaf state after a backward pass, packed like it: `(B, S)`.

        A part on which the loss does not depend has gradient zero.
        """
        return torch.cat(
            [
                torch.zeros_like(part) if part.grad is None else part.grad
                for part in (*self.hidden, *self.cell)
            ],
            dim=1,
        )
