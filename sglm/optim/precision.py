"""Precision: the type of the matrix products, loss scaling, and the skipping of steps.

Weights, optimizer, carried state, synthesizer and losses stay in float32; the model casts the
inputs of its products itself (autocast would choose a type of its own for cuDNN's LSTMs).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sglm.errors import ConfigError, did_you_mean, short_repr
from sglm.model.linear import cpu_multiplies_bfloat16
from sglm.optim.optimizer import step_where_finite

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(kw_only=True)
class Precision:
    """The type of the matrix products on a device, and the loss scale, which only fp16 needs.

    Loss scaling: Micikevicius et al. 2018, sec. 3.2.
    """

    name: str
    compute_dtype: torch.dtype
    scaler: torch.amp.GradScaler
    device: torch.device

    def scale(self, loss: Tensor) -> Tensor:
        """Returns the loss to call `backward` on."""
        scaled: Tensor = self.scaler.scale(loss)
        return scaled

    def loss_scale(self) -> Tensor | float:
        """Returns the factor by which `scale` multiplies the loss; 1 except in fp16."""
        # Not `get_scale`, which would wait for the device.
        if not self.scaler.is_enabled():
            return 1.0
        return self.scale(torch.ones((), device=self.device))

    def measure(self, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
        """Removes the loss scale from the gradients and measures them.

        Returns:
            `(norm of the whole gradient, whether it is finite)`, scalars on the device, not
            synchronized.
        """
        self.scaler.unscale_(optimizer)
        groups = optimizer.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm, torch.isfinite(norm)

    def update(
        self,
        optimizer: torch.optim.Optimizer,
        norm: Tensor,
        finite: Tensor,
        *,
        clip_norm: float | None = None,
    ) -> None:
        """Takes the optimizer's step, or skips it if the norm is not finite.

        In fp16 a skipped step lowers the loss scale, so that later steps are finite again.

        Args:
            optimizer: One of torch's fused optimizers.
            norm, finite: The results of `measure`.
            clip_norm: The cap on the norm (Pascanu et al. 2013). None: no clipping.
        """
        if clip_norm is not None:
            # Like torch's `clip_grad_norm_`, but without its pass over all gradients: as they read
            # a gradient, fused optimizers divide it by this number, which must be float32.
            over = ((norm + 1e-6) / clip_norm).clamp_min(1.0)
            optimizer.grad_scale = over.float()  # type: ignore[attr-defined]
        if self.scaler.is_enabled():
            self.scaler.step(optimizer)  # `measure` has recorded whether all gradients are finite
            self.scaler.update()
        else:
            step_where_finite(optimizer, finite)


def make_precision(name: str, device: torch.device) -> Precision:
    """Makes the precision of a name, for training on a device.

    `auto` is bf16 on a GPU that supports it, fp16 on other GPUs, and fp32 on a CPU.

    Raises:
        ConfigError: The name is unknown; or it is fp16 on a CPU, or bf16 on a CPU without AMX,
            which would be many times slower with it.
    """
    if name not in ("auto", *_DTYPES):
        hint = did_you_mean(str(name), ("auto", *_DTYPES))
        raise ConfigError(f"precision {short_repr(name)} is unknown{hint}")
    if name == "auto":
        if device.type != "cuda":
            name = "fp32"
        else:
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            name = "bf16" if native else "fp16"
    if name == "fp16" and device.type != "cuda":
        raise ConfigError("--precision fp16 needs a CUDA device; on a CPU use fp32 (or auto)")
    if name == "bf16" and device.type != "cuda" and not cpu_multiplies_bfloat16():
        raise ConfigError(
            "--precision bf16 needs a CUDA device, or a CPU with AMX; on this CPU use fp32 (or"
            " auto)"
        )
    return unchecked_precision(name, device)


def unchecked_precision(name: str, device: torch.device) -> Precision:
    """Makes the precision of a name without checks: the tests use 16-bit types on a CPU too."""
    scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
    return Precision(name=name, compute_dtype=_DTYPES[name], scaler=scaler, device=device)
