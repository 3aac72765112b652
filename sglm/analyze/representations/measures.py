"""All measures of one model, of two models, and of a synthesizer, in a form that JSON can hold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglm.analyze.representations.fields import (
    Synthesis,
    estimated_field,
    exact_field,
    find_places,
    true_loss,
)
from sglm.analyze.representations.implied_loss import (
    implied_differences,
    jacobian_norms,
    path_agreement,
    true_differences,
)
from sglm.analyze.representations.layers import Layers, mean_nats
from sglm.analyze.representations.probes import Question, probe
from sglm.analyze.representations.sample import LANES, Sample
from sglm.analyze.representations.similarity import (
    alignments,
    class_contrast,
    class_dissimilarities,
    dissimilarities,
    prediction_difference,
    rdm_correlation,
    top_direction,
)
from sglm.text.store import TokenStore

KL_EVERY = 4  # predictions of two models are compared at every fourth position
LAG_TOKENS = 64  # distance over which the persistence of a layer's top direction is measured
RDM_EVERY = 16  # dissimilarity matrices of two models are compared at every 16th position
# The true gradient, which is the control, costs a softmax at every point.
EXACT_PLACES, EXACT_DIRECTIONS = 4, 8


def measure_model(
    layers: Layers,
    sample: Sample,
    *,
    classes_N: npt.NDArray[np.int64],
    questions: Sequence[Question],
) -> dict[str, Any]:
    """Measures what one model's layers hold.

    Args:
        layers: The model's layers.
        sample: Positions at which they were read.
        classes_N: Classes of the next tokens.
        questions: What the probes are to predict.
    """
    dense_N = torch.from_numpy(np.unique(classes_N, return_inverse=True)[1])
    matrices = {
        name: class_dissimilarities(rows_ND, dense_N) for name, rows_ND in layers.by_name.items()
    }
    probes = {}
    for question in questions:
        scores = {
            name: probe(rows_ND.numpy(), question) for name, rows_ND in layers.by_name.items()
        }
        probes[question.name] = {"chance": question.chance, **scores}
    return {
        "nats": mean_nats(layers, sample),
        "widths": {name: rows_ND.shape[1] for name, rows_ND in layers.by_name.items()},
        "cka": alignments(layers.by_name, layers.by_name),
        "top_direction": {
            name: top_direction(rows_ND, lanes=LANES, lag=LAG_TOKENS // sample.stride)._asdict()
            for name, rows_ND in layers.by_name.items()
        },
        "class_dissimilarity": {name: each.tolist() for name, each in matrices.items()},
        "class_contrast": {name: class_contrast(each) for name, each in matrices.items()},
        "probes": probes,
    }


def measure_pair(first: Layers, second: Layers) -> dict[str, Any]:
    """Compares the predictions and the layers of two models that read the same sample."""
    alike, few = {}, [each.every(RDM_EVERY).by_name for each in (first, second)]
    for name in few[0]:
        if name in few[1]:
            rows = (each[name] for each in few)
            alike[name] = rdm_correlation(*map(dissimilarities, rows))
    return {
        **prediction_difference(first.every(KL_EVERY), second.every(KL_EVERY))._asdict(),
        "cka": alignments(first.by_name, second.by_name),
        "rdm": alike,
    }


def measure_field(synthesis: Synthesis, store: TokenStore) -> dict[str, Any]:
    """Measures whether a synthesizer's field is a gradient, and the loss that it implies.

    The implied loss is measured along the way from another text's state to the text's own state,
    because along it the true loss changes.
    """
    model = synthesis.model
    places = find_places(model, store, synthesis.config)
    estimated, exact = estimated_field(synthesis, places), exact_field(model, places)
    own_MS = places.packed()
    other_MS = own_MS.roll(1, dims=0)
    implied_MG = implied_differences(estimated, other_MS, own_MS)
    few = slice(EXACT_PLACES)
    exact_MG = implied_differences(exact, other_MS[few], own_MS[few])
    true_MG = true_differences(true_loss(model, places), other_MS, own_MS)
    return {
        "rotation": jacobian_norms(estimated, own_MS).rotation,
        "exact_rotation": jacobian_norms(exact, own_MS[few], directions=EXACT_DIRECTIONS).rotation,
        **path_agreement(implied_MG[:, -1], true_MG[:, -1])._asdict(),
        "exact_explained": path_agreement(exact_MG[:, -1], true_MG[few, -1]).explained,
        "implied_nats": implied_MG.mean(0).tolist(),
        "true_nats": true_MG.mean(0).tolist(),
    }
