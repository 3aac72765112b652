"""Reference or Triton kernel: chosen once, when the object that calls the function is built.

The kernel of a reference in module `X` is in module `X_triton`: a function of the same name and
parameters, and `can_run`, which takes the same arguments and returns whether the kernel supports
them. Such a module imports Triton, so it is imported only where the
kernels are asked for.
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


def chosen(reference: Callable[P, R]) -> Callable[P, R]:
    """The function that an object, while it is built, chooses to call in place of `reference`.

    Returns:
        `reference` itself. Where the environment variable `SGLM_TRITON` is 1, a function that runs
        the Triton kernel on what it can run, and `reference` on everything else.

    Raises:
        ConfigError: the kernels were asked for, and Triton is not installed.
    """
    if os.environ.get("SGLM_TRITON") != "1":
        return reference
    if find_spec("triton") is None:
        raise ConfigError(
            "SGLM_TRITON=1 asks for Triton's kernels, and the package triton is not installed; "
            "install it, or unset SGLM_TRITON"
        )
    module = import_module(f"{reference.__module__}_triton")
    kernel: Callable[P, R] = getattr(module, reference.__name__)
    return _KernelOrReference(can_run=module.can_run, kernel=kernel, reference=reference)


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
