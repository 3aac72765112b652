"""The part `other`: times another project's training code, which is not in the repository.

`--other FOLDER` names a folder with their code and a file `arm.py` that calls it:

    def build(*, layers, hidden, vocab_size, batch, window, device):
        '''Returns a function without arguments, or several by name: one training step on a window
        of random tokens, as their own script takes it (forward, backward, clipping, optimizer).'''

`alternate_sg_arm.py` is such a file for the alternating paper's code. The folder is added to
Python's path; `scripts/gpu pack` copies it to `.gpu/other` for another machine.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from typing import Any

import torch

from scripts.benchmarks.training.case import Size
from scripts.benchmarks.training.floor import elapsed_seconds, synchronize
from scripts.gpu_visit.cells import Cell, Context, Found
from scripts.gpu_visit.speed import LARGE, MEDIUM, TINY

_STEPS, _ROUNDS = 8, 5


def other(context: Context) -> Iterator[Cell]:
    """Yields a cell for each size; nothing without such a folder."""
    if context.other is None:
        return
    sizes = {"tiny": TINY} if context.rehearsing else {"large": LARGE, "medium V=33k": MEDIUM}
    for name, size in sizes.items():
        yield Cell(name=name, measure=partial(_timed, context.other, size, context.device))


def _timed(folder: Path, size: Size, device: str) -> Found:
    built = _build(folder)(**asdict(size), device=device)
    kinds = built if isinstance(built, dict) else {"step": built}
    found: Found = {"size": asdict(size)}
    for name, step in kinds.items():
        times = _times(step, torch.device(device))
        found |= {f"{name}_ms": median(times), f"{name}_ms_spread": [min(times), max(times)]}
    if device == "cuda":
        found["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found


def _times(step: Callable[[], object], device: torch.device) -> list[float]:
    """Returns milliseconds per step, one number for each round."""

    def steps() -> None:
        for _ in range(_STEPS):
            step()

    steps()  # allocates memory, and lets libraries choose kernels
    synchronize(device)
    return [1e3 * elapsed_seconds(steps, device) / _STEPS for _ in range(_ROUNDS)]


def _build(folder: Path) -> Callable[..., Any]:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = spec_from_file_location("other_arm", folder / "arm.py")
    if spec is None or spec.loader is None or not (folder / "arm.py").exists():
        raise FileNotFoundError(f"{folder / 'arm.py'}: see scripts/gpu_visit/other.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    build: Callable[..., Any] = module.build
    return build
