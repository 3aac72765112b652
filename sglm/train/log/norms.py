"""How large each layer's weights and updates are, read from the optimizer's own step.

Measured in one step of every log interval, so that it costs a copy of the weights now and then and
nothing in between. Biases are left out: they do not decay.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sglm.config import OptimizerConfig
from sglm.model.language_model import ModelShape

_SUMS = "norms/"  # what a checkpoint's interval sums call them
# In the optimizer's group of matrices, and so in its checkpoints: the running mean of the decay, as
# Adam's first moment weighs its steps, and the sum of these weights.
_MEAN_DECAY = "mean_decay"


def matrices_by_layer(model: nn.Module) -> dict[str, list[Tensor]]:
    """The parameters that can decay: `layers.0` has `layers.0.weight_ih` and `.weight_hh`."""
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            layers.setdefault(name.rpartition(".")[0] or name, []).append(parameter)
    return layers


class NormMeter:
    """Weight norm, update norm and effective learning rate by layer; L2's share in Adam's buffer.

    `weight`: the Euclidean norm ‖w‖ of the layer's matrices before the step. `update`: ‖Δw‖ of what
    the step did to them, its decay included. `effective_rate`: ‖Δw‖ / ‖w‖, which is the rate that
    counts for weights whose scale does not (Bjorck et al. 2021; for Adam, whose steps do not depend
    on the gradient's scale, it goes with rate / ‖w‖). `l2_share`: ‖m_λ‖ / (‖m_λ‖ + ‖m − m_λ‖), the
    part of Adam's first moment m that the L2 term has put there; for kind adam.

    m_λ, the same running mean of the L2 term λw alone, would need a buffer as large as the weights
    and a pass over them in every step. In place of it stands w times the running mean of λ, exact
    for weights that stand still; its relative error is at most β₁ / (1 − β₁) effective rates, the
    way that weights go within the buffer's memory.

    Args:
        model, optimizer: what is measured; the optimizer gets hooks, which sleep until
            `measure_next`.
        sums: `collect` of the checkpoint that is continued.
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
        """The next step of the optimizer is measured, without waiting for the device."""
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
        while self._before:  # one layer after the other is let go
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
        """`{"LAYER/WHAT": number}` of the step that was measured last; waits for the device."""
        if not self._measured:
            return {}
        values = torch.stack(list(self._measured.values())).tolist()
        found = dict(zip(self._measured, values, strict=True))
        self._measured = {}
        for key, value in {**found, "count": 1.0}.items():
            self.sums[_SUMS + key] = self.sums.get(_SUMS + key, 0.0) + value
        return found

    def collect(self) -> dict[str, float]:
        """Sums over what was read since the last `means`; a checkpoint takes them along."""
        return dict(self.sums)

    def means(self) -> dict[str, dict[str, float]]:
        """Means by layer over what was read since the last call; empty where nothing was."""
        count = self.sums.pop(f"{_SUMS}count", 0.0)
        means: dict[str, dict[str, float]] = {}
        for key, total in self.sums.items():
            layer, _, what = key.removeprefix(_SUMS).partition("/")
            if math.isfinite(total):
                means.setdefault(layer, {})[what] = total / count
        self.sums = {}
        return means


def norm_floats(config: OptimizerConfig, shape: ModelShape) -> int:
    """What a measured step needs: the weights before it; with L2, what of the largest layer's
    moment is L2's and what is not, when the weights of that layer are let go."""
    largest = shape.vocab_size * shape.embedding
    return shape.parameters + (largest if config.kind == "adam" else 0)


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors)


def _follow_decay(optimizer: torch.optim.Optimizer) -> None:
    """Takes the decay of the coming step into its running mean."""
    if type(optimizer) is torch.optim.Adam:
        group = optimizer.param_groups[0]
        beta, (mean, weight) = group["betas"][0], group.get(_MEAN_DECAY, (0.0, 0.0))
        group[_MEAN_DECAY] = (
            beta * mean + (1 - beta) * group["weight_decay"],
            beta * weight + (1 - beta),
        )


def _l2_share(optimizer: torch.optim.Optimizer, matrices: list[Tensor]) -> Tensor | None:
    """See `NormMeter`; None where decay is no L2 term in a first moment."""
    if type(optimizer) is not torch.optim.Adam:  # AdamW is one too
        return None
    group, states = optimizer.param_groups[0], [optimizer.state[matrix] for matrix in matrices]
    first = [state["exp_avg"] for state in states]
    mean, weight = group[_MEAN_DECAY]
    # How much of a whole mean the buffer is: steps that were skipped are not in it.
    seen = 1 - group["betas"][0] ** states[0]["step"]
    decayed = [mean / weight * seen * matrix.detach() for matrix in matrices]
    l2, rest = _norm(decayed), _norm(torch._foreach_sub(first, decayed))
    return l2 / (l2 + rest)
