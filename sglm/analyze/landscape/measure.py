"""Directions of updates in the space of a model's weights, its loss and its predictions.

Shapes: L lanes, B of them in a batch, T steps of a window, S coordinates of a lane's state, V
vocabulary.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sglm.analyze.moves import Weights
from sglm.analyze.products import Array
from sglm.analyze.reading import Reading, unpacked
from sglm.config import OptimizerConfig
from sglm.model.language_model import LSTMLanguageModel
from sglm.text.batcher import ComingText

_WINDOWS_AT_ONCE = 16
_STEPS_AT_ONCE = 8
_ADAM_EPS = 1e-8


def norm(weights: Weights) -> float:
    """Returns the Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(each.detach().double().square().sum()) for each in weights.values()))


def scaled(direction: Weights, length: float) -> dict[str, Tensor]:
    """Returns the direction rescaled to the given Euclidean length; zero stays zero."""
    factor = length / (norm(direction) or 1.0)
    return {name: each * factor for name, each in direction.items()}


def random_direction(like: Weights, generator: torch.Generator) -> dict[str, Tensor]:
    """Returns a Gaussian direction in which each tensor has the norm of its counterpart in `like`.

    This makes the two directions comparable (the idea of Li et al. 2018, sec. 4, who rescale each
    filter).
    """
    drawn = {}
    for name, each in like.items():
        random = torch.randn(each.shape, generator=generator, dtype=each.dtype)
        drawn[name] = random * (each.norm() / random.norm())
    return drawn


def mean_gradient(
    model: LSTMLanguageModel,
    reading: Reading,
    after_NLS: Tensor | None,
    *,
    windows: int,
    lanes: int,
) -> dict[str, Tensor]:
    """Computes the gradient in all weights of the nats per token of the first windows and lanes.

    Args:
        model, reading: The model and its reading of the text.
        after_NLS: State gradients that are injected after the windows. None: truncated.
        windows, lanes: The number of windows and of lanes.
    """
    named = dict(model.named_parameters())
    sums = {name: torch.zeros_like(each) for name, each in named.items()}
    for start in range(0, windows, _WINDOWS_AT_ONCE):
        piece = range(start, min(start + _WINDOWS_AT_ONCE, windows))
        nats, ends, gradients = _ends(model, reading, after_NLS, windows=piece, lanes=lanes)
        found = torch.autograd.grad((nats, *ends), [*named.values()], (None, *gradients))
        for name, gradient in zip(named, found, strict=True):
            sums[name] += gradient
    tokens = windows * lanes * reading.window
    return {name: each / tokens for name, each in sums.items()}


def _ends(
    model: LSTMLanguageModel,
    reading: Reading,
    after_NLS: Tensor | None,
    *,
    windows: range,
    lanes: int,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Returns the nats of some windows, and the parts of the states after them and their gradients.

    Both tuples are empty if nothing is injected.
    """
    own, steps = slice(0, lanes), reading.window
    inputs_TL, targets_TL = (
        reading.steps(ids, windows, own, first=0, count=steps)
        for ids in (reading.inputs_CL, reading.targets_CL)
    )
    embedded_TLE, output_weight = model.embed(inputs_TL)
    outputs_TLH, outgoing = model.outputs(
        embedded_TLE, unpacked(model, reading.states(windows, own))
    )
    nats = model.nll(outputs_TLH, targets_TL, output_weight=output_weight)
    if after_NLS is None:
        return nats, (), ()
    injected_LS = after_NLS[windows.start : windows.stop, own].flatten(0, 1)
    return nats, (*outgoing.hidden, *outgoing.cell), outgoing.parts_of(injected_LS)


def update_direction(
    gradient: Weights, config: OptimizerConfig, moments: tuple[Weights, int] | None
) -> dict[str, Tensor]:
    """Computes the update that this gradient would give at rate 1 and without momentum.

    Args:
        gradient: The gradient of the nats per token.
        config: The run's optimizer settings, of which the clipping norm and Adam's decay are used.
        moments: Adam's running means of squares and the number of steps so far. None: the update
            is minus the clipped gradient.
    """
    cap = config.clip_norm
    factor = 1.0 if cap is None else min(1.0, cap / max(norm(gradient), 1e-12))
    if moments is None:
        return {name: -factor * each for name, each in gradient.items()}
    squares, steps = moments
    decay, found = config.beta2, {}
    for name, each in gradient.items():
        clipped = factor * each
        square = decay * squares[name] + (1 - decay) * clipped.square()
        unbiased = square / (1 - decay ** (steps + 1))
        found[name] = -clipped / (unbiased.sqrt() + _ADAM_EPS)
    return found


class TextScore(NamedTuple):
    """The loss and predictions on a text with the weights of the moment.

    Attributes:
        nats_L: The nats per token of each lane.
        log_probabilities: The log-probabilities predicted at the first steps, `(steps · L, V)`.
    """

    nats_L: Array
    log_probabilities: Tensor


@torch.no_grad()
def score_text(
    model: LSTMLanguageModel, text: ComingText, *, skipped: int, distribution_steps: int
) -> TextScore:
    """Scores a text that is read from the start state.

    Args:
        model: The model in evaluation mode.
        text: Token ids `(…, L)`.
        skipped: Number of steps at the start that are not scored.
        distribution_steps: Number of scored steps whose whole distributions are kept.
    """
    state = model.start_state(text.inputs_CB.shape[1])
    _, state = model.features(text.inputs_CB[:skipped], state)
    features_TLH, _ = model.features(text.inputs_CB[skipped:], state)
    logits = model.logits(features_TLH[:distribution_steps].flatten(0, 1))
    pieces = zip(
        *(torch.split(each, _STEPS_AT_ONCE) for each in (features_TLH, text.targets_CB[skipped:])),
        strict=True,
    )
    nats = [model.nll(features, targets, reduction="none") for features, targets in pieces]
    mean_L: Array = torch.cat(nats).double().mean(0).numpy()
    return TextScore(mean_L, logits.log_softmax(-1))


@torch.no_grad()
def own_nats(model: LSTMLanguageModel, reading: Reading, *, windows: int, lanes: int) -> float:
    """Returns the nats per token of a gradient's windows, from the states of the reading."""
    total = 0.0
    for start in range(0, windows, _WINDOWS_AT_ONCE):
        piece = range(start, min(start + _WINDOWS_AT_ONCE, windows))
        total += float(_ends(model, reading, None, windows=piece, lanes=lanes)[0])
    return total / (windows * lanes * reading.window)


def mean_kl(before: Tensor, after: Tensor) -> float:
    """Returns the mean KL(before ‖ after) in nats of predictions' log-probabilities `(N, V)`."""
    divergences_N = (before.exp() * (before - after)).double().sum(-1)
    return float(divergences_N.mean())
