"""The optimizer of the model's weights: parameter groups and the peak learning rate."""

import torch
from torch import Tensor, nn

from sglm.config import OptimizerConfig


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam, AdamW or SGD in torch's fused form; weight decay on matrices only.

    Biases get no decay: its purpose is to limit the scale of the matrix products, and decaying the
    forget gate's bias would shorten the memory. `lr` of every group is the peak rate, which the
    schedule multiplies.
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
    kind = torch.optim.AdamW if config.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The rate of all groups from now on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def set_weight_decay(optimizer: torch.optim.Optimizer, weight_decay: float) -> None:
    """The decay of matrices from now on, in an optimizer of `make_optimizer`."""
    matrices, _ = optimizer.param_groups
    matrices["weight_decay"] = weight_decay


def step_where_finite(optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
    """Takes a fused optimizer's step, or skips it where `finite` is false.

    Decided on the device, without a synchronization: fused optimizers skip a step where their
    attribute `found_inf` is set, and divide gradients by their attribute `grad_scale`, if there is
    one. torch's GradScaler uses them in the same way. Both are removed afterwards. The step may be
    recorded in a CUDA graph, with today's learning rate.
    """
    # torch records no step without this, and warns of it where none is recorded. A fused optimizer
    # does the same with and without.
    recorded = finite.is_cuda and torch.cuda.is_current_stream_capturing()
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = recorded
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)
