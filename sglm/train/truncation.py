"""Randomly truncated backpropagation, compensated so that its gradient is unbiased.

ARTBP (Tallec & Ollivier 2017): after δ steps without truncation, the next step truncates with
probability c(δ); if it does not, the gradient that passes backwards there is divided by 1 − c(δ).
Here truncation is possible only every few steps, so that a window takes only a few calls of the
LSTM. At all other steps c is zero, which leaves the estimate unbiased.
"""

import random

import torch
from torch import Tensor

from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState

_PARTS = 4  # number of places in an average window where truncation is possible
_LONGEST = 8  # in mean lengths: the few longer windows are cut there, to bound memory
_TAIL = 6.0  # α below: the larger, the nearer the lengths are to a geometric distribution


def part_steps(window: int) -> int:
    """Returns the number of steps between two possible truncations, for windows of mean length
    `window`: the length of a part."""
    return max(1, window // _PARTS)


def truncation_probability(part: int, window: int) -> float:
    """Returns c after `part` parts without truncation, for windows of mean length `window`.

    c is hyperbolic, so that long windows are not too rare and compensating factors stay bounded:
    c(δ) = (α − 1) / ((α − 2)·T₀ + δ), with the mean length T₀ and δ counted in parts.
    """
    mean_parts = window / part_steps(window)
    return min(1.0, (_TAIL - 1) / ((_TAIL - 2) * mean_parts + part))


def draw_lengths(lane_length: int, window: int, seed: int) -> list[int]:
    """Draws lengths of windows, of mean `window`, that add up to at most `lane_length`."""
    generator = random.Random(seed)
    unit = part_steps(window)
    lengths: list[int] = []
    left = lane_length
    while left >= unit:
        parts = 1
        while (parts + 1) * unit <= min(left, _LONGEST * window) and (
            generator.random() >= truncation_probability(parts, window)
        ):
            parts += 1
        lengths.append(parts * unit)
        left -= parts * unit
    return lengths


def compensated_outputs(
    model: LSTMLanguageModel, embedded_TBE: Tensor, state: LSTMState, *, window: int
) -> tuple[Tensor, LSTMState]:
    """Computes `model.outputs` of one random window, its gradient compensated at each possible cut.

    Args:
        model, embedded_TBE, state: See `LSTMLanguageModel.outputs`.
        window: The mean length that was passed to `draw_lengths`.
    """
    outputs = []
    for part, embedded in enumerate(torch.split(embedded_TBE, part_steps(window))):
        if part > 0:
            scale = 1 / (1 - truncation_probability(part, window))
            state = LSTMState(
                tuple(_scaled_gradient(each, scale) for each in state.hidden),
                tuple(_scaled_gradient(each, scale) for each in state.cell),
            )
        part_TBH, state = model.outputs(embedded, state)
        outputs.append(part_TBH)
    return torch.cat(outputs), state


def _scaled_gradient(value: Tensor, scale: float) -> Tensor:
    """Returns the same values; the gradient sent back through them is multiplied by `scale`."""
    return value.detach() + scale * (value - value.detach())
