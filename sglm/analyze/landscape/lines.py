"""The loss around a model: on lines along gradients, and on planes with a random direction.

Shapes: N windows of a lane, B lanes of a batch, S coordinates of a lane's state, L other lanes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.gradients.measure import LONG, SYNTHETIC, TRUNCATED
from sglm.analyze.landscape.measure import (
    TextScore,
    mean_gradient,
    mean_kl,
    norm,
    own_nats,
    random_direction,
    scaled,
    score_text,
    update_direction,
)
from sglm.analyze.moves import Move, Weights, moved
from sglm.analyze.products import Array, drawings, interval
from sglm.analyze.reading import (
    LONG_REACH,
    WARM_UP,
    Reading,
    estimates,
    future_state_gradients,
    read,
)
from sglm.analyze.trained import Trained
from sglm.text.batcher import ComingText

BATCHES = (1, 32)  # batches that a gradient is the mean of: as in one update, and less noisy
LANES, STEPS = 32, 160  # lanes of the other text, and scored steps of each
DISTRIBUTION_STEPS = 16  # steps of the other text whose whole distributions are compared
# Lengths of a step, as shares of the weights' norm.
LENGTHS = tuple(2.0**power for power in (-10, -9, -8, -7.5, -7, -6.5, -6, -5, -4))
# Lengths on the plane's axes. Along the update, where the lines are lowest near the middle of the
# positive half; aside, in the random direction, four times as far because the loss changes little.
ALONG = tuple(2.0**-6 * share for share in (-1, -0.5, 0, 0.25, 0.5, 0.75, 1))
ASIDE = tuple(2.0**-4 * share for share in (-1, -0.5, 0, 0.5, 1))
PLANE_STEPS = 64  # scored steps of the other text


class LandscapeInputs(NamedTuple):
    """A trained model and the texts on which the loss near its weights is measured.

    Attributes:
        trained: The model.
        reading: The model's reading of the lanes on which gradients are computed.
        other: Text on which no gradient is computed.
        injected: By kind of gradient, the state gradients that are injected after the windows,
            `(N, B, S)`, or None if none are.
    """

    trained: Trained
    reading: Reading
    other: ComingText
    injected: Mapping[str, Tensor | None]


def prepare_inputs(trained: Trained, own: ComingText, other: ComingText) -> LandscapeInputs:
    """Reads the text for the gradients, and computes the state gradients to inject.

    Args:
        trained: The model.
        own: The text for the gradients: `steps_of` steps of the lanes of a batch.
        other: Text on which no gradient is computed.
    """
    model, window, windows = trained.model, trained.config.train.window, BATCHES[-1]
    reading = read(model, own, skipped=WARM_UP, window=window, windows=windows)
    long_NLS = torch.cat(
        [
            future_state_gradients(
                model, reading, [LONG_REACH], windows=range(n, n + 1), lanes=slice(None)
            )
            for n in range(windows)
        ]
    )
    injected: dict[str, Tensor | None] = {TRUNCATED: None, LONG: long_NLS}
    if trained.estimator is not None:
        injected[SYNTHETIC] = estimates(
            model, reading, trained.estimator, stretch=trained.stretch, lookahead=trained.lookahead
        )
    return LandscapeInputs(trained, reading, other, injected)


def directions(inputs: LandscapeInputs, batches: int) -> dict[str, dict[str, Tensor]]:
    """Returns an update's direction for the mean of `batches` batches of each kind of gradient."""
    trained = inputs.trained
    lanes = inputs.reading.inputs_CL.shape[1]
    return {
        kind: update_direction(
            mean_gradient(trained.model, inputs.reading, after_NLS, windows=batches, lanes=lanes),
            trained.config.optimizer,
            trained.moments,
        )
        for kind, after_NLS in inputs.injected.items()
    }


def lines(inputs: LandscapeInputs) -> dict[str, Any]:
    """Measures loss and predictions along the direction of each kind of gradient."""
    trained = inputs.trained
    weights: Weights = dict(trained.model.named_parameters())
    size, before = norm(weights), _score(inputs, steps=STEPS)
    found: dict[str, Any] = {}
    update = float("nan")
    for batches in BATCHES:
        of_kinds = directions(inputs, batches)
        if batches == 1 and trained.moments is not None:
            update = trained.config.optimizer.learning_rate * norm(of_kinds[TRUNCATED]) / size
        truncated: list[Array] = []
        for kind, direction in of_kinds.items():
            line = _line(inputs, weights, scaled(direction, size), batches=batches, before=before)
            changes = line.pop("changes")
            truncated = truncated or changes
            found.setdefault(kind, {})[str(batches)] = {
                **line,
                "change": [_over_lanes(each) for each in changes],
                "beyond_truncated": [
                    _over_lanes(own - other) for own, other in zip(changes, truncated, strict=True)
                ],
            }
    return {
        "lengths": list(LENGTHS),
        "update_length": update,
        "adam": trained.moments is not None,
        "missing": trained.missing,
        "lines": found,
    }


def _over_lanes(of_lanes_L: Array) -> list[float]:
    """Returns the mean over the lanes, `[value, low, high]`."""
    return interval(drawings(len(of_lanes_L)) @ of_lanes_L / len(of_lanes_L))


def _line(
    inputs: LandscapeInputs, weights: Weights, unit: Weights, *, batches: int, before: TextScore
) -> dict[str, Any]:
    model, lanes = inputs.trained.model, inputs.reading.inputs_CL.shape[1]
    own_before = own_nats(model, inputs.reading, windows=batches, lanes=lanes)
    changes, own, divergence = [], [], []
    for length in LENGTHS:
        with moved(weights, [Move(unit, length)]):
            after = _score(inputs, steps=STEPS)
            own_after = own_nats(model, inputs.reading, windows=batches, lanes=lanes)
        changes.append(after.nats_L - before.nats_L)
        own.append(own_after - own_before)
        divergence.append(mean_kl(before.log_probabilities, after.log_probabilities))
    return {"changes": changes, "own_change": own, "kl": divergence}


def plane(inputs: LandscapeInputs) -> dict[str, Any]:
    """Measures the loss's changes on the plane of an update's direction and a random one."""
    weights: Weights = dict(inputs.trained.model.named_parameters())
    size, before = norm(weights), _score(inputs, steps=PLANE_STEPS)
    changes = {}
    for kind, direction in directions(inputs, BATCHES[-1]).items():
        unit = scaled(direction, size)
        generator = torch.Generator().manual_seed(0)
        aside = random_direction(unit, generator)
        changes[kind] = [
            [
                _change(inputs, weights, [Move(unit, x), Move(aside, y)], before=before)
                for x in ALONG
            ]
            for y in ASIDE
        ]
    return {"along": [*ALONG], "aside": [*ASIDE], "change": changes}


def _change(
    inputs: LandscapeInputs, weights: Weights, moves: Sequence[Move], *, before: TextScore
) -> float:
    with moved(weights, moves):
        after = _score(inputs, steps=PLANE_STEPS)
    return float(np.mean(after.nats_L - before.nats_L))


def _score(inputs: LandscapeInputs, *, steps: int) -> TextScore:
    text = ComingText(*(ids[: WARM_UP + steps] for ids in inputs.other))
    return score_text(
        inputs.trained.model, text, skipped=WARM_UP, distribution_steps=DISTRIBUTION_STEPS
    )
