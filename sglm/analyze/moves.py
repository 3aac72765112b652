"""Moves of a model's weights that are undone after a measurement."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

# Tensors by the parameter's name: weights, gradients or directions.
Weights = Mapping[str, Tensor]


class Move(NamedTuple):
    """A move of the weights by `length` times the direction."""

    direction: Weights
    length: float


@contextmanager
def moved(weights: Weights, moves: Sequence[Move]) -> Iterator[None]:
    """Moves the weights in place, and at the end restores them bit for bit."""
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for direction, length in moves:
                for name, weight in weights.items():
                    if length:
                        weight.add_(direction[name], alpha=length)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])
