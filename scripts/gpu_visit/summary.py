"""Adds a visit's results to a machine's file in `docs/benchmarks/`, and proposes defaults."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.gpu_visit.results import Record, read
from sglm.errors import InputError
from sglm.kernels.choice import KERNELS
from sglm.storage.durable import replace_text

# The function that a cell of the part `kernels` times, by the first word of its name.
TIMED = {
    "injection": "sglm.dni.injection.injected_gradient",
    "dropout": "sglm.kernels.dropout.regularized_dropout",
    "lstm": "sglm.kernels.lstm.lstm_layer",
}


def summarize(files: Iterable[Path], name: str, docs: Path) -> str:
    """Adds to `docs/benchmarks/NAME-gpu.json`; returns the lines that `KERNELS` should have.

    Args:
        files: Files of visits to one machine; if a cell has several lines, the last counts.
        name: Name of the machine.
        docs: The folder of the documentation.

    Raises:
        InputError: A file has no cells or is from a rehearsal, or the machines differ.
    """
    cells = collected(files)
    path = docs / "benchmarks" / f"{name}-gpu.json"
    lines = [
        f"{path}: written; next: python -m scripts.documentation",
        "",
        "sglm/kernels/choice.py, KERNELS:",
    ]
    lines += proposals(cells.get("kernels", {}), cells["rates"]["machine"])
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part, found in cells.items():
        known.setdefault(part, {}).update(found)
    replace_text(path, json.dumps(known, indent=1) + "\n")
    return "\n".join(lines)


def collected(files: Iterable[Path]) -> dict[str, dict[str, Record]]:
    """Returns the measured cells, by part and name.

    Raises:
        InputError: See `summarize`.
    """
    cells: dict[str, dict[str, Record]] = {}
    devices = set()
    for path in files:
        records = read(path)
        if not records:
            raise InputError(f"{path}: no cell of a visit; give a file visit.jsonl")
        for record in records:
            if record.get("rehearsal"):
                raise InputError(f"{path}: from a rehearsal, which measures nothing")
            if "error" not in record:
                kept = {key: value for key, value in record.items() if key not in ("part", "cell")}
                cells.setdefault(record["part"], {})[record["cell"]] = kept
            if record["cell"] == "machine":
                devices.add(record.get("device"))
    if len(devices) != 1:
        named = ", ".join(sorted(map(str, devices))) or "none"
        raise InputError(f"the files must be of one machine, and name it; they are of: {named}")
    return cells


def speedups(kernels: dict[str, Record]) -> dict[str, dict[str, float]]:
    """Returns how many times as fast as its reference each kernel is, by kernel and cell.

    Old visits also timed kernels that have been deleted since; these are left out.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in KERNELS}
    for cell, record in kernels.items():
        if name := TIMED.get(cell.split()[0]):
            found[name][cell] = record["speedup"]
    return found


def proposals(kernels: dict[str, Record], machine: Record) -> list[str]:
    """Returns a line for each kernel: on, to be deleted, to be restricted, or unmeasured."""
    lines = []
    for name, by_cell in speedups(kernels).items():
        needed: Any = KERNELS[name].needed
        if not by_cell:
            lines.append(f'    "{name}": not measured: stays as it is')
            continue
        least, most = min(by_cell.values()), max(by_cell.values())
        own = "" if needed == 1 else f", needed={needed}"
        if least > needed:
            generation = tuple(machine.get("capability", ())) or "of that GPU"
            where = f'device="{machine["device"]}", capability={generation}'
            measured = f"Measured({where}, speedup={least:.2f})"
            lines.append(f'    "{name}": Kernel(measured={measured}{own}),')
        elif most <= needed:
            lines.append(f'    "{name}": at most {most:.2f} times: delete it with its tests')
        else:
            faster = [cell for cell, speedup in by_cell.items() if speedup > needed]
            lines.append(
                f'    "{name}": {least:.2f} to {most:.2f} times: let `can_run` keep it to the'
                f" sizes where it is faster ({'; '.join(faster)}), or delete it"
            )
    return lines
