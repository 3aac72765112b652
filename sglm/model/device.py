"""Where the network runs: the one place that turns `auto`, `cpu` or `cuda` into a device."""

import torch

from sglm.errors import InputError, did_you_mean
from sglm.ranks import local_rank

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str = "auto") -> torch.device:
    """The device that a user's word stands for.

    Args:
        name: `"cpu"`, `"cuda"`, or `"auto"`: the GPU where torch sees one, else the CPU.

    Raises:
        InputError: another word, or `"cuda"` where torch sees no CUDA device.
    """
    if name not in DEVICES:
        raise InputError(f"unknown device {name!r}{did_you_mean(name, DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        reason = (
            "torch sees no CUDA device (look at nvidia-smi and CUDA_VISIBLE_DEVICES)"
            if torch.version.cuda
            else "this torch was built without CUDA (install a CUDA build of it)"
        )
        raise InputError(f"device 'cuda' was asked for, but {reason}; or use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def own_gpu(device: torch.device) -> torch.device:
    """This process's own GPU among those of its machine, where torchrun has started several.

    Raises:
        InputError: there are fewer GPUs than processes.
    """
    if device.type != "cuda":
        return device
    index = local_rank()
    if index >= torch.cuda.device_count():
        raise InputError(
            f"process {index + 1} on this machine has no GPU of its own"
            f" ({torch.cuda.device_count()} seen); lower --nproc-per-node, or use --device cpu"
        )
    chosen = torch.device("cuda", index)
    torch.cuda.set_device(chosen)
    return chosen
