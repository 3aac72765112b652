"""Locked dropout of the last layer's outputs, and penalties on their size (AR) and change (TAR).

Merity, McCann & Socher 2017, "Revisiting Activation Regularization for Language RNNs", sec. 3: AR
is α·L2(m ⊙ h_t) of the outputs after dropout, TAR is β·L2(h_t − h_{t+1}) of those before it, both
of the last layer only. As in their AWD-LSTM code, L2 is the mean of squares over steps, lanes and
features, which makes α and β independent of window and batch.

This is plain PyTorch, the reference of `dropout_triton`. Shapes: T time, B lanes, H features of the
last layer.
"""

import torch
from torch import Tensor


def activation_penalty(
    outputs_TBH: Tensor, features_TBH: Tensor, *, activation: float, temporal: float
) -> Tensor:
    """Returns the penalty to add to a window's nats per token: a scalar, float32 at least.

    A term whose coefficient is zero is not computed. If both are zero, the result is a constant
    zero, and training is bitwise the same as without the penalty. A window of one step has no
    differences, so its temporal term is zero.

    Args:
        outputs_TBH: The last layer's outputs before dropout.
        features_TBH: The same after dropout.
        activation: α, for the size of `features_TBH`.
        temporal: β, for the change of `outputs_TBH` within the window.
    """
    # Half types are not precise enough for a mean over thousands of small squares.
    half = outputs_TBH.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else outputs_TBH.dtype
    penalty = torch.zeros((), dtype=dtype, device=outputs_TBH.device)
    if activation:
        penalty = penalty + activation * features_TBH.to(dtype).square().mean()
    if temporal and len(outputs_TBH) > 1:
        penalty = penalty + temporal * outputs_TBH.to(dtype).diff(dim=0).square().mean()
    return penalty


def regularized_dropout(
    outputs_TBH: Tensor, mask_BH: Tensor | None, *, activation: float, temporal: float
) -> tuple[Tensor, Tensor]:
    """Applies a mask to every step of the window, and penalises size and change.

    Args:
        outputs_TBH: The last layer's outputs.
        mask_BH: The mask by which they are multiplied, in their type; None: nothing is dropped.
        activation, temporal: α and β of `activation_penalty`.

    Returns:
        `(features_TBH, penalty)`.
    """
    features_TBH = outputs_TBH if mask_BH is None else outputs_TBH * mask_BH
    penalty = activation_penalty(
        outputs_TBH, features_TBH, activation=activation, temporal=temporal
    )
    return features_TBH, penalty
