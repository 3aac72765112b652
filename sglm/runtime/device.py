"""The device that the network runs on, and its numerical settings.

Chooses a device for `auto`, `cpu` or `cuda`; sets torch's switches for `--deterministic`; keeps
float32 products from being rounded (to TF32 or bfloat16). Importing this module sets nothing.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch

from sglm.errors import InputError, did_you_mean
from sglm.runtime.ranks import local_rank

DEVICES = ("auto", "cpu", "cuda")

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# With these values cuBLAS sums in the same order every time (cuBLAS documentation, "Results
# reproducibility"). In deterministic mode, torch raises an error in cuBLAS products under others.
_WORKSPACES = (":4096:8", ":16:8")


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Returns the device of a name.

    Args:
        name: `"cpu"`, `"cuda"` (or one of several, `"cuda:1"`), or `"auto"`: the GPU if torch sees
            one, otherwise the CPU. A `torch.device` is also accepted.

    Raises:
        InputError: The name is unknown, or torch does not see that CUDA device.
    """
    wanted = str(name) if isinstance(name, str | torch.device) else repr(name)
    kind, _, index = wanted.partition(":")
    numbered = kind in ("cpu", "cuda") and index.isdecimal()
    if wanted not in DEVICES and not numbered:
        # Compared by letters, "gpu" is closest to "cpu", but means "cuda".
        cure = "; did you mean 'cuda'?" if kind == "gpu" else did_you_mean(wanted, DEVICES)
        raise InputError(f"unknown device {wanted!r}{cure}")
    if kind == "cuda" and not torch.cuda.is_available():
        reason = (
            "torch sees no CUDA device (look at nvidia-smi and CUDA_VISIBLE_DEVICES)"
            if torch.version.cuda
            else "this torch was built without CUDA (install a CUDA build of it)"
        )
        raise InputError(f"device 'cuda' was asked for, but {reason}; or use --device cpu")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise InputError(
            f"device {wanted!r}: torch sees {torch.cuda.device_count()} CUDA devices, from 0 on"
        )
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(kind, int(index)) if kind == "cuda" and index else torch.device(kind)


def claim_gpu(device: torch.device) -> torch.device:
    """Returns the GPU that this process is to use, and makes it torch's current one.

    Each process that torchrun has started gets a GPU of its own; any other process gets the GPU of
    the given number. A CPU is returned unchanged.

    Raises:
        InputError: There are fewer GPUs than processes.
    """
    if device.type != "cuda":
        return device
    rank = local_rank()
    index = (device.index or 0) if rank is None else rank
    if index >= torch.cuda.device_count():
        raise InputError(
            f"process {index + 1} on this machine has no GPU of its own"
            f" ({torch.cuda.device_count()} seen); lower --nproc-per-node, or use --device cpu"
        )
    chosen = torch.device("cuda", index)
    torch.cuda.set_device(chosen)
    return chosen


def make_deterministic(device: torch.device) -> None:
    """Makes all later computation reproducible, bit for bit, on this machine; some of it is slower.

    Applies to the whole process. Call it before anything is computed on a GPU: cuBLAS and, through
    it, cuDNN's recurrent nets read their environment variable only once. A CPU needs no settings:
    with the same number of threads, runs on it are equal bit for bit.

    Source: "Reproducibility" in torch's documentation.

    Raises:
        InputError: An environment variable asks cuBLAS for something else.
    """
    if device.type != "cuda":
        return
    workspace = os.environ.setdefault(_WORKSPACE, _WORKSPACES[0])
    if workspace not in _WORKSPACES:
        raise InputError(
            f"{_WORKSPACE}={workspace} does not go with --deterministic; unset it, or set it to"
            f" {_WORKSPACES[0]}"
        )
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    _forbid_tf32()


def _forbid_tf32() -> None:
    # First torch's older switches: if only the newer ones are set, the two sets contradict each
    # other, and torch raises an error when either is read (`Context::allowTF32CuBLAS`).
    backends: Any = torch.backends
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = False
    # Then the newer ones: a newer setting for all backends would override cuDNN's older switch.
    backends.cudnn.rnn.fp32_precision = backends.cudnn.conv.fp32_precision = "ieee"
    backends.mkldnn.rnn.fp32_precision = "ieee"


def _tf32_restorer() -> Callable[[], None]:
    """Returns a function that restores the present settings of TF32."""
    backends: Any = torch.backends  # torch has no types for the newer switches
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    products = (backends.cuda.matmul, mkldnn.matmul, mkldnn.rnn, cudnn.rnn, cudnn.conv)
    newer = [each.fp32_precision for each in products]
    for_matmul = for_cudnn = None
    with suppress(RuntimeError):  # the program uses the newer switches only
        for_matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        for_cudnn = cudnn.allow_tf32

    def restore() -> None:
        if for_matmul is not None:
            torch.set_float32_matmul_precision(for_matmul)
        if for_cudnn is not None:
            cudnn.allow_tf32 = for_cudnn
        for each, precision in zip(products, newer, strict=True):
            each.fp32_precision = precision

    return restore


class _Tf32Guard:
    """A guard of TF32's switches, which are global to the process: the first thread that enters
    sets them, and the last one that leaves restores them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0

    def needed_on_cpu(self) -> bool:
        """Returns whether a CPU may round products under the present settings, or under those that
        another thread replaced on entry."""
        mkldnn: Any = torch.backends.mkldnn
        settings = (mkldnn.matmul.fp32_precision, mkldnn.rnn.fp32_precision)
        return self.inside > 0 or "bf16" in settings

    def enter(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.restore = _tf32_restorer()
                _forbid_tf32()

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.restore()


_tf32_guard = _Tf32Guard()


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Inside the block, float32 is multiplied as float32; any number of threads may be inside.

    TF32 keeps three decimal digits, and torch's recurrent nets use it by default on a GPU: the
    same text in another batch, or on a CPU, would score differently from the fourth digit on. A CPU
    rounds (to bfloat16) only if the caller's `torch.set_float32_matmul_precision("medium")` asks
    for it.
    """
    if device.type != "cuda" and not _tf32_guard.needed_on_cpu():
        yield
        return
    _tf32_guard.enter()
    try:
        yield
    finally:
        _tf32_guard.leave()


@contextmanager
def default_torch_modes() -> Iterator[None]:
    """Inside the block, torch computes as in a process that has changed none of its modes: with
    gradients, without autocast, in float32, and with new tensors on the CPU."""
    dtype = torch.get_default_dtype()
    with ExitStack() as modes:
        modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        modes.callback(torch.set_default_dtype, dtype)
        yield
