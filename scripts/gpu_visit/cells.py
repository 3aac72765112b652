"""The cells of a part, and how the process that measures them reports."""

import gc
import json
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Context:
    """The circumstances in which a part runs.

    Attributes:
        rehearsing: Whether it runs on the CPU, with tiny sizes.
        data: A token store of Penn Treebank. None: there is none.
        other: A folder with another project's code to be timed. None: there is none.
        work: The folder of runs, which are not brought back.
        earlier: The part's cells that were measured before, by their names.
        deadline: The part's deadline on the monotonic clock.
        only: A regular expression; only cells whose names contain a match are measured.
    """

    rehearsing: bool
    data: Path | None = None
    other: Path | None = None
    work: Path
    earlier: dict[str, Found]
    deadline: float
    only: str = ""

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsing else "cuda"

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One measurement: its name within its part, and the function that takes it."""

    name: str
    measure: Callable[[], Found]


Part = Callable[[Context], Iterable[Cell]]


def perform(part: Part, context: Context, stream: TextIO) -> None:
    """Takes a part's missing measurements; reports the beginning and end of each as a JSON line.

    An error is a result too: the next cell follows, unless the device is lost.
    """
    for cell in part(context):
        if cell.name in context.earlier or not re.search(context.only, cell.name):
            continue
        _send(stream, {"begins": cell.name})
        start = time.monotonic()
        try:
            found = cell.measure()
        except Exception as error:  # any failure of one measurement
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        free_memory()
        _send(stream, {"cell": cell.name, **found, "seconds": round(time.monotonic() - start, 2)})
        if _is_lost(found):
            return
    _send(stream, {"done": True})


def free_memory() -> None:
    """Frees GPU memory between cells, so that it does not count for the next one's peak."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _is_lost(found: Found) -> bool:
    """Returns whether a new process is needed: after an error in a kernel every call fails."""
    return "CUDA error" in found.get("error", "") or "AcceleratorError" in found.get("error", "")


def _send(stream: TextIO, message: Found) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()
