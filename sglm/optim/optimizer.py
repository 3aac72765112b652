"""The optimizer of the model's weights: parameter groups and the peak learning rate."""

import torch
from torch import Tensor, nn

from sglm.config import OptimizerConfig
from sglm.runtime.ranks import Ranks


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Makes Adam, AdamW or SGD in torch's fused form, with weight decay on matrices only.

    Biases get no decay: its purpose is to limit the scale of the matrix products, and decaying the
    forget gate's bias would shorten the memory. `lr` of every group is the peak rate, until
    `set_learning_rate` sets that of a step.
    """
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    biases = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    if config.kind == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
        if config.momentum:
            # torch would allocate the buffers at the first step, and leave them uninitialized if
            # that step is skipped.
            for p in (*matrices, *biases):
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return sgd
    # AdamW decouples the decay from the gradient's moments, Adam mixes it in as an L2 term
    # (Loshchilov & Hutter 2019; Bjorck et al. 2021, sec. 4).
    adam = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """Sets the weight decay of matrices in an optimizer made by `make_optimizer`."""
    matrices, _ = optimizer.param_groups
    matrices["weight_decay"] = weight_decay


def step_where_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Takes a fused optimizer's step, or skips it if `finite` is false.

    This is decided on the device, without a synchronization: fused optimizers skip a step if their
    attribute `found_inf` is set, and divide gradients by their attribute `grad_scale`, if there is
    one. torch's GradScaler uses them in the same way. Both are removed afterwards. The step may be
    recorded in a CUDA graph, with the current learning rate.
    """
    # torch refuses to record a step without this flag, and warns if it is set while nothing is
    # recorded. A fused optimizer computes the same with and without it.
    recorded = finite.is_cuda and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = recorded
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)


def step_on_loss(
    optimizer: torch.optim.Optimizer, loss: Tensor, finite: Tensor, *, ranks: Ranks
) -> None:
    """Takes a step on a loss's gradients, averaged over the ranks, with `step_where_finite`.

    Args:
        optimizer: The fused optimizer of the parameters, all of which the loss depends on.
        loss: This rank's loss, whose mean over the ranks is to be minimised.
        finite: Whether to take the step; the same on all ranks.
        ranks: The processes that share the lanes.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = torch.autograd.grad(loss, parameters)
    ranks.average(gradients)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    step_where_finite(optimizer, finite)
