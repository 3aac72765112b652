"""The loss of windows is the model's, and so are its derivatives."""

import numpy as np
import torch
import torch.nn.functional as F

from sglm.analyze.curvature.windows import CONTEXT_STEPS, choose_windows, needed_tokens
from tests.analyze.curvature.tiny_losses import tiny_loss


def test_features_and_loss_are_the_models() -> None:
    window_loss = tiny_loss()
    model, windows = window_loss.model, window_loss.windows
    with torch.no_grad():
        _, state = model.features(windows.context_CN, model.start_state(4))
        features, _ = model.features(windows.inputs_TN, state)
        nll = model.nll(features, windows.targets_TN).item() / windows.targets_TN.numel()
        torch.testing.assert_close(window_loss.features(window_loss.embedded_TNI), features)
    assert abs(window_loss.loss.nll - nll) < 1e-12


def test_the_expansion_has_the_derivatives_of_the_cross_entropy() -> None:
    window_loss = tiny_loss()
    model, windows = window_loss.model, window_loss.windows
    features_TNH = window_loss.features(window_loss.embedded_TNI).detach()

    def cross_entropy(features: torch.Tensor) -> torch.Tensor:
        logits = model.logits(features).flatten(0, 1)
        return F.cross_entropy(logits, windows.targets_TN.flatten())

    def expanded(features: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = window_loss.loss(features, features)
        return loss

    first, jacobian = (torch.func.jacrev(of) for of in (expanded, cross_entropy))
    torch.testing.assert_close(first(features_TNH), jacobian(features_TNH))
    second, hessian = (torch.func.jacrev(of) for of in (first, jacobian))
    torch.testing.assert_close(second(features_TNH), hessian(features_TNH))


def test_windows_lie_evenly_over_the_whole_text() -> None:
    ids = np.arange(CONTEXT_STEPS + 31, dtype=np.uint16)
    windows = choose_windows(ids, windows=4, steps=6)
    assert windows.inputs_TN[0].tolist() == [CONTEXT_STEPS + start for start in (0, 8, 16, 24)]
    assert windows.context_CN[:, 1].tolist() == list(range(8, 8 + CONTEXT_STEPS))
    torch.testing.assert_close(windows.targets_TN, windows.inputs_TN + 1)
    assert windows.targets_TN[-1, -1] == ids[-1]


def test_windows_of_the_shortest_text_do_not_overlap() -> None:
    ids = np.arange(needed_tokens(4, 6))
    windows = choose_windows(ids, windows=4, steps=6)
    read = windows.inputs_TN.t().flatten().tolist()
    assert read == list(range(CONTEXT_STEPS, CONTEXT_STEPS + 24))
