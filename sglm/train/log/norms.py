"""The norms of each layer's weights and updates, measured around the optimizer's step.

They are measured at one step of each log interval, which costs an occasional copy of the weights
and nothing in between. Biases are left out, because they do not decay.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sglm.config import OptimizerConfig
from sglm.model.language_model import ModelShape

_SUMS = "norms/"  # prefix of their names among a checkpoint's interval sums
# A key in the optimizer's group of matrices, and so in its checkpoints. It holds the running mean
# of the decay, weighted over steps as in Adam's first moment, and the sum of these weights.
_MEAN_DECAY = "mean_decay"


def matrices_by_layer(model: nn.Module) -> dict[str, list[Tensor]]:
    """Returns the parameters that can decay: under `layers.0`, its `weight_ih` and `weight_hh`."""
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            layers.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    return layers


class NormMeter:
    """A meter of each layer's weight norm, update norm, effective rate, and L2 share in Adam.

    `weight`: ‖w‖, the Euclidean norm of the layer's matrices before the step. `update`: ‖Δw‖, the
    norm of their change in the step, decay included. `effective_rate`: ‖Δw‖ / ‖w‖, the rate that
    matters for weights whose scale does not matter (Bjorck et al. 2021; for Adam, whose steps do
    not depend on the gradient's scale, it is proportional to rate / ‖w‖). `l2_share`:
    ‖m_λ‖ / (‖m_λ‖ + ‖m − m_λ‖), the part of Adam's first moment m that is due to the L2 term; only
    for kind adam.

    m_λ, the running mean of the L2 term λw alone, would need a buffer as large as the weights and a
    pass over them in every step. It is approximated by w times the running mean of λ, which is
    exact for constant weights. The relative error is at most β₁ / (1 − β₁) effective rates, the
    distance that the weights move within the buffer's memory.

    Args:
        model, optimizer: The model to measure and its optimizer, which gets hooks that do nothing
            until `measure_next`, except that they follow Adam's decay.
        sums: The result of `collect` in the checkpoint that the run continues from.
    """

    def __init__(
        self, model: nn.Module, *, optimizer: torch.optim.Optimizer, sums: dict[str, float]
    ) -> None:
        self.sums = {key: value for key, value in sums.items() if key.startswith(_SUMS)}
        self.layers = matrices_by_layer(model)
        self._before: dict[str, list[Tensor]] = {}
        self._is_due = False
        self._measured: dict[str, Tensor] = {}
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def measure_next(self) -> None:
        """Has the optimizer's next step measured, without waiting for the device."""
        self._is_due = True

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        _follow_decay(optimizer)
        if self._is_due:
            self._is_due = False
            self._before = {
                layer: [matrix.detach().clone() for matrix in matrices]
                for layer, matrices in self.layers.items()
            }

    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        while self._before:  # layer by layer, so that each copy is freed early
            layer = next(iter(self._before))
            matrices = self._before.pop(layer)
            now, weight = self.layers[layer], _norm(matrices)
            torch._foreach_sub_(matrices, now)
            update = _norm(matrices)
            del matrices
            self._measured |= {
                f"{layer}/weight": weight,
                f"{layer}/update": update,
                f"{layer}/effective_rate": update / weight,
            }
            share = _l2_share(optimizer, now)
            if share is not None:
                self._measured[f"{layer}/l2_share"] = share

    def read(self) -> dict[str, float]:
        """Returns `{"LAYER/WHAT": number}` of the latest measured step; waits for the device."""
        if not self._measured:
            return {}
        values = torch.stack(list(self._measured.values())).tolist()
        found = dict(zip(self._measured, values, strict=True))
        self._measured = {}
        for key, value in {**found, "count": 1.0}.items():
            self.sums[_SUMS + key] = self.sums.get(_SUMS + key, 0.0) + value
        return found

    def collect(self) -> dict[str, float]:
        """Returns the sums over what was read since the last `means`, which checkpoints save."""
        return dict(self.sums)

    def means(self) -> dict[str, dict[str, float]]:
        """Returns the means by layer over what was read since the last call; maybe empty."""
        count = self.sums.pop(f"{_SUMS}count", 0.0)
        means: dict[str, dict[str, float]] = {}
        for key, total in self.sums.items():
            layer, _, what = key.removeprefix(_SUMS).partition("/")
            if math.isfinite(total):
                means.setdefault(layer, {})[what] = total / count
        self.sums = {}
        return means


def norm_floats(config: OptimizerConfig, shape: ModelShape) -> int:
    """Returns how many floats a measured step holds: a copy of the weights before it and, with L2,
    one more array of the largest layer's size: the two parts of its moment, less its freed copy."""
    largest = shape.vocab_size * shape.embedding
    return shape.parameters + (largest if config.kind == "adam" else 0)


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors)


def _follow_decay(optimizer: torch.optim.Optimizer) -> None:
    """Updates the running mean of the decay with that of the coming step."""
    if type(optimizer) is torch.optim.Adam:
        group = optimizer.param_groups[0]
        beta, (mean, weight) = group["betas"][0], group.get(_MEAN_DECAY, (0.0, 0.0))
        group[_MEAN_DECAY] = (
            beta * mean + (1 - beta) * group["weight_decay"],
            beta * weight + (1 - beta),
        )


def _l2_share(optimizer: torch.optim.Optimizer, matrices: list[Tensor]) -> Tensor | None:
    """Computes `l2_share` of `NormMeter`; None if decay is not an L2 term in a first moment."""
    if type(optimizer) is not torch.optim.Adam:  # not isinstance: AdamW is a subclass
        return None
    group, states = optimizer.param_groups[0], [optimizer.state[matrix] for matrix in matrices]
    first = [state["exp_avg"] for state in states]
    mean, weight = group[_MEAN_DECAY]
    # The sum of the weights that the buffer gives to steps; skipped steps are not among them.
    seen = 1 - group["betas"][0] ** states[0]["step"]
    decayed = [mean / weight * seen * matrix.detach() for matrix in matrices]
    l2, rest = _norm(decayed), _norm(torch._foreach_sub(first, decayed))
    return l2 / (l2 + rest)
