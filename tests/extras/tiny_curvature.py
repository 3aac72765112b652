"""A tiny model, windows of random text, and its curvature by brute force."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.analyze.curvature.windows import WindowLoss, Windows, choose_windows
from sglm.model.language_model import LSTMLanguageModel, ModelShape

VOCABULARY, STEPS = 7, 3


@cache
def tiny_windows() -> Windows:
    """Four windows of three steps, in float64's company: `tiny_loss`."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 300)
    return choose_windows(ids, windows=4, steps=STEPS)


@cache
def tiny_loss(layers: int = 2) -> WindowLoss:
    """Of a model with 3 units and embeddings of 2 numbers, in float64."""
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=VOCABULARY, layers=layers, hidden=3, embedding=2, tied=False)
    model = LSTMLanguageModel(shape).double().eval()
    with torch.no_grad():
        model.embedding.normal_()
        assert model.softmax_weight is not None
        model.softmax_weight.normal_()
    return WindowLoss(model, tiny_windows())


def logits_of(window_loss: WindowLoss, name: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A weight, and the logits `(T, N, V)` as a function of it alone."""
    features, model = window_loss.features, window_loss.model
    weight = features.get_parameter(name).detach()

    def logits(weight: Tensor) -> Tensor:
        features_TNH: Any = torch.func.functional_call(
            features, {name: weight}, (window_loss.embedded_TNI,)
        )
        return features_TNH @ model.output_weight.detach().t() + model.softmax_bias.detach()

    return weight, logits


def brute_force(window_loss: WindowLoss, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Hessian and Gauss–Newton matrix in a weight, from the cross-entropy itself."""
    weight, logits = logits_of(window_loss, name)
    targets = tiny_windows().targets_TN.flatten()

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(logits(weight).flatten(0, 1), targets)

    size = weight.numel()
    hessian = torch.func.hessian(loss)(weight).reshape(size, size)
    jacobian = torch.func.jacrev(logits)(weight).reshape(-1, VOCABULARY, size)
    p = logits(weight).flatten(0, 1).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("svi,svw,swj->ij", jacobian, middle, jacobian) / len(p)
    return hessian.detach().numpy(), gauss_newton.detach().numpy()
