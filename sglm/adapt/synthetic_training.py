"""Trains the network of `sglm.adapt.synthetic` by backpropagation through its steps.

The model is frozen.

Shapes: T time of a segment, B lanes, V vocabulary, H features.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from sglm.adapt.dynamic import with_weights
from sglm.adapt.synthetic import GradientsShape, SyntheticGradients
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.predictor import evaluating
from sglm.text.batcher import Batcher

LANES = 16
SEGMENTS = 120
# The rate of the small networks. The initialisation has a tenth of it, because its thousands of
# biases would otherwise memorise this text.
LEARNING_RATE = 3e-3


class Progress(NamedTuple):
    """A report on the segments since the last one: mean nats per token, static and adapted."""

    segment: int
    segments: int
    static: float
    adapted: float


def train_gradients(
    network: LSTMLanguageModel,
    ids_N: npt.NDArray[np.integer[Any]],
    *,
    bos_id: int,
    seed: int = 0,
    shape: GradientsShape,
    segments: int = SEGMENTS,
    on_progress: Callable[[Progress], None] | None = None,
) -> SyntheticGradients:
    """Reads lanes of a text segment by segment, and trains on the loss of each next segment.

    The model must not have been trained on the text: on its training text its errors are different.

    Args:
        network: The model; it is not changed.
        ids_N: Token ids of the text.
        bos_id: Token before the text.
        seed: Seed of the initial weights; torch's global generator is not touched.
        shape: Shape of the network to train.
        segments: Number of segments to read, of each lane.
        on_progress: Called after every tenth of the segments, and at the end.

    Raises:
        InputError: The text is shorter than two segments.
    """
    batcher = _batcher(ids_N, bos_id, segment=shape.segment)
    network = with_weights(network, list(network.parameters())).requires_grad_(False)
    gradients = _fresh(shape, seed).to(network.embedding.device)
    optimizer = _optimizer(gradients)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, segments)
    every, sums, summed = max(1, segments // 10), [0.0, 0.0], 0
    for step in range(segments):
        window = batcher.at(step).to(network.embedding.device)
        lanes = window.inputs_TB.shape[1]
        if window.is_first:
            state, evidence = network.start_state(lanes), gradients.no_evidence(lanes)
        with evaluating(network):
            features_TBH, state = network.features(window.inputs_TB, state)
            static = network.nll(features_TBH, window.targets_TB) / window.targets_TB.numel()
        features_TBH = features_TBH.clone()  # outside inference mode, to be part of a graph
        proposal = gradients(evidence, network.target_rows)
        logits_TBV = network.logits(proposal.adapted(features_TBH)) + proposal.bias_BV
        loss = F.cross_entropy(logits_TBV.flatten(0, 1), window.targets_TB.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            expected_BV = logits_TBV.softmax(2).sum(0)
            evidence = evidence.after(
                window.targets_TB, expected_BV, features_TBH, bias_BV=proposal.bias_BV
            )
        sums, summed = [sums[0] + static.item(), sums[1] + loss.item()], summed + 1
        if on_progress and ((step + 1) % every == 0 or step + 1 == segments):
            on_progress(Progress(step + 1, segments, sums[0] / summed, sums[1] / summed))
            sums, summed = [0.0, 0.0], 0
    return gradients.requires_grad_(False)


def _batcher(ids_N: npt.NDArray[np.integer[Any]], bos_id: int, *, segment: int) -> Batcher:
    if len(ids_N) < 2 * segment:
        raise InputError(
            f"the text to train on has {len(ids_N)} tokens, fewer than {2 * segment};"
            " prepare a store with more, by sglm prep --valid"
        )
    lanes = max(1, min(LANES, len(ids_N) // (4 * segment)))
    return Batcher(ids_N, batch=lanes, window=segment, bos_id=bos_id)


def _fresh(shape: GradientsShape, seed: int) -> SyntheticGradients:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SyntheticGradients(shape)


def _optimizer(gradients: SyntheticGradients) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        [
            {"params": gradients.initialisation(), "lr": LEARNING_RATE / 10},
            {"params": gradients.network_parameters(), "lr": LEARNING_RATE},
        ]
    )
