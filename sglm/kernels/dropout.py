"""Locked dropout and the activation penalties in plain PyTorch: the reference of
`dropout_triton`.

Shapes: T time, B lanes, H features of the last layer.
"""

import torch
from torch import Tensor


def activation_penalty(
    outputs_TBH: Tensor, features_TBH: Tensor, activation: float, temporal: float
) -> Tensor:
    """What to add to the nats per token of a window: a scalar, float32 at least.

    A term whose coefficient is zero is not computed, so that without either the result is a
    constant zero and training is bitwise what it is without the penalty. A window of one step has
    no differences: its temporal term is zero.

    Args:
        outputs_TBH: the last layer's outputs before dropout.
        features_TBH: the same after dropout.
        activation: α, for the size of `features_TBH`.
        temporal: β, for the change of `outputs_TBH` within the window.
    """
    # Half types have no digits left for a mean over thousands of small squares.
    half = outputs_TBH.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half else outputs_TBH.dtype
    penalty = torch.zeros((), dtype=dtype, device=outputs_TBH.device)
    if activation:
        penalty = penalty + activation * features_TBH.to(dtype).square().mean()
    if temporal and len(outputs_TBH) > 1:
        penalty = penalty + temporal * outputs_TBH.to(dtype).diff(dim=0).square().mean()
    return penalty


def regularized_dropout(
    outputs_TBH: Tensor, mask_BH: Tensor | None, activation: float, temporal: float
) -> tuple[Tensor, Tensor]:
    """Applies a mask to every step of the window, and penalises size and change.

    Args:
        outputs_TBH: the last layer's outputs.
        mask_BH: what multiplies them, in their type; None drops nothing.
        activation, temporal: α and β of `activation_penalty`.

    Returns:
        `(features_TBH, penalty)`.
    """
    features_TBH = outputs_TBH if mask_BH is None else outputs_TBH * mask_BH
    return features_TBH, activation_penalty(outputs_TBH, features_TBH, activation, temporal)
