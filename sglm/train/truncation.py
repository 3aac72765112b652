"""Randomly truncated backpropagation, compensated so that it is unbiased.

ARTBP, Tallec & Ollivier 2017: after δ steps without truncation the next one truncates with
probability c(δ), and where it does not, the gradient that passes backwards is divided by 1 − c(δ).
Here truncation is possible only every few steps, so that a window stays a handful of calls to the
LSTM; where it is not possible, c is zero, which leaves the estimate unbiased.
"""

import random

import torch
from torch import Tensor

from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState

_PARTS = 4  # places in an average window where truncation is possible
_LONGEST = 8  # mean lengths: the few windows that would be longer are cut there, to bound memory
_TAIL = 6.0  # α below: the larger, the nearer the lengths are to a geometric distribution


def part_steps(window: int) -> int:
    """Steps between two places where a window of mean length `window` may be truncated."""
    return max(1, window // _PARTS)


def truncation_probability(part: int, window: int) -> float:
    """c after `part` parts without truncation, such that windows have the mean length `window`.

    Hyperbolic, so that long windows are not too rare and compensating factors stay bounded:
    c(δ) = (α − 1) / ((α − 2)·T₀ + δ), with the mean length T₀ and δ counted in parts.
    """
    mean_parts = window / part_steps(window)
    return min(1.0, (_TAIL - 1) / ((_TAIL - 2) * mean_parts + part))


def draw_lengths(lane_length: int, window: int, seed: int) -> list[int]:
    """Lengths of windows of mean length `window`, together at most `lane_length`."""
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
    """`model.outputs` of one random window, with the gradient compensated at every possible cut.

    Args:
        model, embedded_TBE, state: see `LSTMLanguageModel.outputs`.
        window: the mean length that `draw_lengths` was given.
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
    """The same numbers; what is sent back through them is multiplied by `scale`."""
    return value.detach() + scale * (value - value.detach())
