"""Reference or Triton kernel: chosen once, when the object that calls the function is built.

The kernel of a reference in module `X` is in module `X_triton`: a function of the same name and
parameters, and `can_run`, which takes the same arguments and returns whether the kernel supports
them. Such a module imports Triton, so it is imported only where its kernel is chosen.

A kernel that was measured to be faster is on by default; one never measured is off; one measured to
be slower is deleted with its tests. `scripts/gpu summary` proposes the table's lines.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from sglm.errors import ConfigError

HALF_DTYPES = (torch.float16, torch.bfloat16)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How a kernel did on a GPU, at the sizes of `scripts.benchmarks.kernels`.

    Attributes:
        device: the GPU.
        speedup: the reference's time divided by the kernel's: the least over the sizes.
    """

    device: str
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What is known of a kernel, and whether it runs unless told otherwise.

    Attributes:
        measured: None as long as nobody has.
        needed: the speedup from which it is worth its code.
    """

    measured: Measured | None = None
    needed: float = 1.0

    @property
    def on_by_default(self) -> bool:
        return self.measured is not None and self.measured.speedup > self.needed


# By the full name of the reference.
KERNELS = {
    "sglm.dni.injection.injected_gradient": Kernel(
        measured=Measured(device="NVIDIA H200", speedup=7.88)
    ),
    "sglm.kernels.dropout.regularized_dropout": Kernel(
        measured=Measured(device="NVIDIA H200", speedup=6.84)
    ),
    # More code than the others together, and beside it a library that NVIDIA has tuned.
    # The speedup is an estimate, from the kernels' own times (docs/log.md, 2026-11-27).
    "sglm.kernels.lstm.lstm_layer": Kernel(
        measured=Measured(device="NVIDIA H200", speedup=1.9), needed=1.2
    ),
}


def chosen(reference: Callable[P, R]) -> Callable[P, R]:
    """The function that an object, while it is built, chooses to call in place of `reference`.

    Returns:
        `reference` itself; or a function that runs the Triton kernel on what it can run, and
        `reference` on everything else: where the environment variable `SGLM_TRITON` is 1, and
        where it is not set if the kernel is on by default (`KERNELS`) and Triton is there.

    Raises:
        ConfigError: the kernels were asked for, and Triton is not installed.
    """
    asked, has_triton = os.environ.get("SGLM_TRITON"), find_spec("triton") is not None
    if asked == "1" and not has_triton:
        raise ConfigError(
            "SGLM_TRITON=1 asks for Triton's kernels, and the package triton is not installed; "
            "install it, or unset SGLM_TRITON"
        )
    by_default = has_triton and KERNELS[full_name(reference)].on_by_default
    if not (asked == "1" or (not asked and by_default)):
        return reference
    module = import_module(f"{reference.__module__}_triton")
    kernel: Callable[P, R] = getattr(module, reference.__name__)
    return _KernelOrReference(can_run=module.can_run, kernel=kernel, reference=reference)


def full_name(reference: Callable[..., object]) -> str:
    """By which `KERNELS` knows it."""
    return f"{reference.__module__}.{reference.__name__}"


@dataclass(frozen=True, kw_only=True)
class _KernelOrReference(Generic[P, R]):
    """The kernel where it can run, else the reference. Not a closure: models must be picklable."""

    can_run: Callable[P, bool]
    kernel: Callable[P, R]
    reference: Callable[P, R]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        run = self.kernel if self.can_run(*args, **kwargs) else self.reference
        return run(*args, **kwargs)


def suitable(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether kernels for these types accept the tensors: on a GPU, neither empty nor too large.

    Kernels count the elements of an array in 32 bits.
    """
    return all(
        each.is_cuda and each.dtype in dtypes and 0 < each.numel() < 2**31 for each in tensors
    )
