"""What a part is made of, and how its process reports."""

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
    """Where a part runs.

    Attributes:
        rehearsing: on the CPU, with tiny sizes.
        data: a token store of Penn Treebank, where there is one.
        other: a folder with somebody else's code to be timed, outside the repository.
        work: for runs, which are not brought back.
        earlier: the part's cells that were measured before, by their names.
        deadline: of the part, on the monotonic clock.
        only: a regular expression: cells in whose names it is found.
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
    """One measurement: its name within its part, and what takes it."""

    name: str
    measure: Callable[[], Found]


Part = Callable[[Context], Iterable[Cell]]


def perform(part: Part, context: Context, stream: TextIO) -> None:
    """Takes a part's measurements that are missing; each begins and ends with a line of JSON.

    An error is a result: the next cell goes on, unless the device is lost.
    """
    for cell in part(context):
        if cell.name in context.earlier or not re.search(context.only, cell.name):
            continue
        _send(stream, {"begins": cell.name})
        start = time.monotonic()
        try:
            found = cell.measure()
        except Exception as error:  # whatever one measurement dies of
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        free_memory()
        _send(stream, {"cell": cell.name, **found, "seconds": round(time.monotonic() - start, 2)})
        if _is_lost(found):
            return
    _send(stream, {"done": True})


def free_memory() -> None:
    """On a GPU, between cells: what one has left behind must not be part of the next one's peak."""
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _is_lost(found: Found) -> bool:
    """After an error inside a kernel every later call fails: a new process is needed."""
    return "CUDA error" in found.get("error", "") or "AcceleratorError" in found.get("error", "")


def _send(stream: TextIO, message: Found) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()
