"""Numbers: which type the matrix products run in, loss scaling, and whether a step may be taken.

Weights, optimizer, carried state, synthesizer and losses stay in float32; the model casts around
its products (no autocast: it would pick a type of its own for cuDNN's LSTMs).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sglm.errors import ConfigError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Precision:
    """The type of the products, and the loss scale, which only fp16 needs.

    Loss scaling: Micikevicius et al. 2018, sec. 3.2.
    """

    name: str
    compute_dtype: torch.dtype
    scaler: torch.amp.GradScaler

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def loss_scale(self) -> float:
        """What the loss is multiplied with before its backward pass; 1 but for fp16."""
        return float(self.scaler.get_scale())

    def clip(
        self, optimizer: torch.optim.Optimizer, parameters: list[Tensor], clip_norm: float | None
    ) -> tuple[Tensor, bool]:
        """Takes the loss scale out of the gradients and caps their common norm.

        Returns:
            `(norm before clipping, whether it is finite)`.
        """
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(
            parameters, float("inf") if clip_norm is None else clip_norm
        )
        return norm, bool(torch.isfinite(norm))

    def update(self, optimizer: torch.optim.Optimizer, finite: bool) -> None:
        """Takes the optimizer's step, or leaves everything as it is where it would do harm.

        In fp16 a step that is not taken lowers the loss scale, so that a later one will be.
        """
        if finite:
            self.scaler.step(optimizer)
        self.scaler.update()


def make_precision(name: str, device: torch.device) -> Precision:
    """`auto` is bf16 on a GPU that has it, fp16 on one that has not, and fp32 on a CPU, where
    half types can be many times slower.

    Raises:
        ConfigError: a half type was asked for on a CPU.
    """
    if name == "auto":
        if device.type != "cuda":
            name = "fp32"
        else:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            name = "bf16" if native else "fp16"
    if name != "fp32" and device.type != "cuda":
        raise ConfigError(f"--precision {name} needs a CUDA device; on a CPU use fp32 (or auto)")
    return precision_of(name, device)


def precision_of(name: str, device: torch.device) -> Precision:
    """The precision of that name, wherever it may run: the tests use half types on a CPU too."""
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    return Precision(name, _DTYPES[name], scaler)
