"""Estimates whether a case fits into this machine's memory."""

import os
from pathlib import Path

import torch

from scripts.benchmarks.training.case import Size

_EMPTY_PROCESS = 350_000_000


def needed_bytes(names: list[str], size: Size) -> int:
    """Returns a rough estimate of the memory that the processes of these arms need together.

    Processes do not return memory, so peaks add up. Each needs: Python and torch; weights,
    gradients and two moments; for the window, about four arrays as large as its logits (with their
    log-softmax and their gradient), and what every layer keeps for its backward pass. The recurrent
    synthesizer keeps some vectors of 50 numbers for every coordinate of every state.
    """
    weights = 16 * size.parameters
    window = 4 * size.tokens * (4 * size.vocab_size + 20 * size.layers * size.hidden)
    coordinates = 2 * size.layers * size.hidden * size.batch
    recurrent = 4 * 50 * 20 * coordinates if any("recurrent" in name for name in names) else 0
    return len(names) * (_EMPTY_PROCESS + weights + window) + recurrent


def free_bytes(device: torch.device) -> int:
    """Returns the memory that is still available on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = Path("/proc/meminfo").read_text(encoding="ascii").partition("MemAvailable:")[2]
        return int(found.split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
