"""The choice of reference or Triton kernel, made when the object that calls the function is built.

The kernel of a reference in module `X` is in module `X_triton`: a function of the same name and
parameters, and `can_run`, which takes the same arguments and returns whether the kernel supports
them. Such a module imports Triton, so it is imported only where its kernel is chosen.

A kernel that was measured to be faster is on by default; one that was never measured is off; one
that was measured to be slower is deleted with its tests. `scripts/gpu summary` proposes the lines
of the table `KERNELS`.
"""

import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from sglm.errors import ConfigError, short_repr

HALF_DTYPES = (torch.float16, torch.bfloat16)

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measured speed of a kernel on a GPU, at the sizes of `scripts.benchmarks.kernels`.

    Attributes:
        device: Name of the GPU.
        capability: Its compute capability. Other GPUs of that generation are assumed to be alike.
        speedup: The reference's time divided by the kernel's, the smallest over the sizes.
    """

    device: str
    capability: tuple[int, int]
    speedup: float


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The measurement of a kernel, and whether the kernel is on by default.

    Attributes:
        measured: The measurement; None before there is one.
        needed: The speedup above which the kernel is worth its code.
    """

    measured: Measured | None = None
    needed: float = 1.0

    @property
    def on_by_default(self) -> bool:
        return self.measured is not None and self.measured.speedup > self.needed


def _on_h200(speedup: float) -> Measured:
    return Measured(device="NVIDIA H200", capability=(9, 0), speedup=speedup)


# The keys are the references' full names.
KERNELS = {
    "sglm.dni.injection.injected_gradient": Kernel(measured=_on_h200(7.88)),
    "sglm.kernels.dropout.regularized_dropout": Kernel(measured=_on_h200(6.84)),
    # More code than the other kernels together, in place of a library that NVIDIA has tuned.
    # The speedup is an estimate from the kernels' own times (docs/log.md, 2026-11-27).
    "sglm.kernels.lstm.lstm_layer": Kernel(measured=_on_h200(1.98), needed=1.2),
}


def chosen(reference: Callable[P, R]) -> Callable[P, R]:
    """Returns the function that an object, while it is built, chooses to call for `reference`.

    Returns:
        `reference` itself; or a function that runs the Triton kernel on what it can run, and
        `reference` on everything else. It is the latter if the environment variable `SGLM_TRITON`
        is 1. If the variable is not set, it is the latter if the kernel is on by default
        (`KERNELS`) and a GPU, Triton and the tools with which Triton builds are present; the kernel
        then runs only on GPUs of the generation that was measured.

    Raises:
        ConfigError: `SGLM_TRITON` is 1 but Triton is not installed, or it is neither 0 nor 1.
    """
    setting, has_triton = os.environ.get("SGLM_TRITON", ""), find_spec("triton") is not None
    if setting not in ("", "0", "1"):
        raise ConfigError(f"SGLM_TRITON is {short_repr(setting)}; give 1 or 0, or unset it")
    if setting == "1" and not has_triton:
        raise ConfigError(
            "SGLM_TRITON=1 asks for Triton's kernels, and the package triton is not installed; "
            "install it, or unset SGLM_TRITON"
        )
    known = KERNELS[full_name(reference)]
    # AMD's GPUs have capabilities of their own.
    has_gpu = torch.cuda.is_available() and torch.version.hip is None
    by_default = known.on_by_default and has_triton and has_gpu and _can_build()
    if not (setting == "1" or (not setting and by_default)):
        return reference
    only_on = None if setting == "1" or known.measured is None else known.measured.capability
    module = import_module(f"{reference.__module__}_triton")
    kernel: Callable[P, R] = getattr(module, reference.__name__)
    return _KernelOrReference(
        can_run=module.can_run, kernel=kernel, reference=reference, only_on=only_on
    )


def _can_build() -> bool:
    """Returns whether a C compiler and Python's headers are present, from which Triton builds what
    launches a kernel (`triton.runtime.build`)."""
    compiler = os.environ.get("CC") or which("gcc") or which("clang")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def full_name(reference: Callable[..., object]) -> str:
    """Returns the key of `KERNELS` for a reference."""
    return f"{reference.__module__}.{reference.__name__}"


@dataclass(frozen=True, kw_only=True)
class _KernelOrReference(Generic[P, R]):
    """A function that runs the kernel on what it can run, and the reference on everything else.

    A pickled model chooses again where it is loaded.

    Attributes:
        can_run: Whether the kernel supports the arguments.
        only_on: The compute capability of the GPUs on which the kernel may run; None: all.
    """

    can_run: Callable[P, bool]
    kernel: Callable[P, R]
    reference: Callable[P, R]
    only_on: tuple[int, int] | None

    def __reduce__(self) -> tuple[Any, ...]:
        return chosen, (self.reference,)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        fits = self.only_on is None or capability(args[0]) == self.only_on
        run = self.kernel if fits and self.can_run(*args, **kwargs) else self.reference
        return run(*args, **kwargs)


def capability(tensor: object) -> tuple[int, int] | None:
    """Returns the compute capability of the GPU that holds the tensor; None if it is on no GPU, or
    not on the process's current one, on which Triton would launch the kernel."""
    if not isinstance(tensor, Tensor) or not tensor.is_cuda:
        return None
    if tensor.device.index != torch.cuda.current_device():
        return None
    return torch.cuda.get_device_capability(tensor.device)


def suitable(*tensors: Tensor, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Returns whether kernels for these types accept the tensors: on a GPU, not empty or too large.

    Kernels count the elements of an array in 32 bits.
    """
    return all(
        each.is_cuda and each.dtype in dtypes and 0 < each.numel() < 2**31 for each in tensors
    )
