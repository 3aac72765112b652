"""The sharpness of the loss at a model's weights, in units of the weights themselves."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.moves import Move, moved
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import Ids, stream_nll
from sglm.train.log.norms import matrices_by_layer

LENGTH = 0.05  # of a disturbance, as a share of each matrix's: small beside what changes a model
DIRECTIONS = 4
ALL = "all"


def relative_sharpness(
    loss: Callable[[], float],
    matrices: Sequence[Tensor],
    *,
    generator: torch.Generator,
    length: float = LENGTH,
    directions: int = DIRECTIONS,
) -> float:
    """Measures the mean curvature of the loss along random disturbances in units of the weights.

    All matrices are moved at once: each matrix W of n entries by ε‖W‖u, with u a random direction
    of length 1, and by as much the opposite way. The measure is the mean over u of
    (L(W + ε‖W‖u) + L(W − ε‖W‖u) − 2L(W)) / ε². For small ε it is Σ ‖W‖² tr(H_W) / n in expectation,
    with H_W the matrix's own block of the Hessian. If the function does not depend on a matrix's
    scale, H_W is proportional to 1/‖W‖² and the measure does not depend on the scale either;
    tr(H_W) alone would, and would mistake small weights for a sharp minimum.

    Args:
        loss: Function that computes the loss at the current weights.
        matrices: Weights, which are moved in place and put back.
        generator: Random generator that draws the directions.
        length: ε.
        directions: Number of directions over which the mean is taken.
    """
    weights = {str(index): each for index, each in enumerate(matrices)}
    unmoved, bends = loss(), []
    for _ in range(directions):
        drawn = [
            torch.randn(each.shape, generator=generator, dtype=each.dtype) for each in matrices
        ]
        disturbance = {
            name: length * each.norm() / unit.norm() * unit
            for (name, each), unit in zip(weights.items(), drawn, strict=True)
        }
        both = []
        for sign in (1.0, -1.0):
            with moved(weights, [Move(disturbance, sign)]):
                both.append(loss())
        bends.append((sum(both) - 2 * unmoved) / length**2)
    return float(np.mean(bends))


def sharpness_by_layer(
    model: LSTMLanguageModel, ids: Ids, *, bos_id: int, seed: int = 0
) -> Mapping[str, float]:
    """Measures `relative_sharpness` of each layer alone and of all at once, in nats per token.

    Args:
        model: A model, whose weights are moved and put back.
        ids: Text over which the loss is computed.
        bos_id: Token that is read before the text.
        seed: Seed of the directions: the same for all models, so that they compare.
    """

    def loss() -> float:
        return stream_nll(NetworkPredictor(model), ids, bos_id) / len(ids)

    layers = {
        name: [matrix.detach() for matrix in matrices]
        for name, matrices in matrices_by_layer(model).items()
    }
    groups = {**layers, ALL: [each for matrices in layers.values() for each in matrices]}
    return {
        name: relative_sharpness(loss, matrices, generator=torch.Generator().manual_seed(seed))
        for name, matrices in groups.items()
    }
