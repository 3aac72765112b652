"""Losses of tiny models over random text, and their curvature by brute force."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.analyze.curvature.windows import WindowLoss, Windows
from sglm.model.language_model import LSTMLanguageModel, ModelShape

VOCABULARY = 7
Matrix = npt.NDArray[np.float64]


@cache
def tiny_loss(
    layers: int = 2, windows: int = 4, steps: int = 3, *, same: bool = False
) -> WindowLoss:
    """Of a model with 3 units, embeddings of 2 numbers and a peaked softmax, in float64.

    Args:
        layers, windows, steps: how many.
        same: every window reads one and the same token throughout.
    """
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=VOCABULARY, layers=layers, hidden=3, embedding=2, tied=False)
    model = LSTMLanguageModel(shape).double().eval()
    with torch.no_grad():
        model.embedding.normal_()
        model.output_weight.normal_()
    ids_TN = torch.randint(VOCABULARY, (steps + 6, windows))
    inputs_TN = ids_TN[5:-1] * (0 if same else 1)
    text = Windows(context_CN=ids_TN[:5], inputs_TN=inputs_TN, targets_TN=ids_TN[6:])
    return WindowLoss(model, windows=text)


def brute_force(window_loss: WindowLoss, name: str) -> tuple[Matrix, Matrix]:
    """Hessian and Gauss–Newton matrix in one parameter, from the cross-entropy itself."""
    weight = window_loss.features.get_parameter(name).detach()

    def features(weight: Tensor) -> Tensor:
        called: Any = torch.func.functional_call
        result: Tensor = called(window_loss.features, {name: weight}, (window_loss.embedded_TNI,))
        return result

    return curvature_of(window_loss, features, weight)


def curvature_of(
    window_loss: WindowLoss,
    features: Callable[[Tensor], Tensor],
    at: Tensor,
) -> tuple[Matrix, Matrix]:
    """The same in any argument of which the features are a function."""
    model = window_loss.model

    def logits(argument: Tensor) -> Tensor:
        return features(argument) @ model.output_weight.detach().t() + model.softmax_bias.detach()

    def loss(argument: Tensor) -> Tensor:
        return F.cross_entropy(
            logits(argument).flatten(0, 1), window_loss.windows.targets_TN.flatten()
        )

    size = at.numel()
    # Not torch.func.hessian: its forward differentiation warns of something of torch's own.
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(at).reshape(size, size)
    jacobian = torch.func.jacrev(logits)(at).reshape(-1, VOCABULARY, size)
    p = logits(at).flatten(0, 1).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    gauss_newton = torch.einsum("svi,svw,swj->ij", jacobian, middle, jacobian) / len(p)
    return hessian.detach().numpy(), gauss_newton.detach().numpy()


def every_cotangent(window_loss: WindowLoss) -> list[Tensor]:
    """In place of random ones: cotangents whose mean second moment is exactly the loss's Hessian.

    One for each step and word: √p (e − p) of this word at this step, and zero at the others.
    """
    model, features_SH = window_loss.model, window_loss.loss.features_SH
    steps, windows = window_loss.embedded_TNI.shape[:2]
    with torch.no_grad():
        p_TNV = (features_SH @ model.output_weight.t() + model.softmax_bias).softmax(-1)
        p_TNV = p_TNV.view(steps, windows, VOCABULARY)
        cotangents = []
        for step in range(steps):
            for word in range(VOCABULARY):
                towards_NV = -p_TNV[step].clone()
                towards_NV[:, word] += 1
                towards_NV *= p_TNV[step, :, word, None].sqrt()
                cotangent = torch.zeros_like(p_TNV)
                cotangent[step] = towards_NV
                cotangents.append(cotangent @ model.output_weight)
    return [each * len(cotangents) ** 0.5 for each in cotangents]
