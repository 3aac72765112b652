"""From a visit's JSON-lines file to a machine's file in `docs/benchmarks/`, and to the defaults."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.gpu_visit.results import Record, read
from sglm.errors import InputError
from sglm.kernels.choice import KERNELS
from sglm.storage.durable import replace_text

# Cells of the part `kernels` by the function that they time.
TIMED = {
    "injection": "sglm.dni.injection.injected_gradient",
    "dropout": "sglm.kernels.dropout.regularized_dropout",
    "lstm": "sglm.kernels.lstm.lstm_layer",
}


def summarize(files: Iterable[Path], name: str, docs: Path) -> str:
    """Adds to `docs/benchmarks/NAME-gpu.json`; returns the lines that `KERNELS` should have.

    Args:
        files: of one machine; of a cell with several lines the last counts.
        name: of the machine.
        docs: the folder.

    Raises:
        InputError: a file without cells; from a rehearsal; of several machines.
    """
    cells = collected(files)
    path = docs / "benchmarks" / f"{name}-gpu.json"
    lines = [f"{path}: now python -m scripts.documentation", "", "sglm/kernels/choice.py, KERNELS:"]
    lines += proposals(cells.get("kernels", {}), cells["rates"]["machine"])
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for part, found in cells.items():
        known.setdefault(part, {}).update(found)
    replace_text(path, json.dumps(known, indent=1) + "\n")
    return "\n".join(lines)


def collected(files: Iterable[Path]) -> dict[str, dict[str, Record]]:
    """Cells that were measured, by part and name.

    Raises:
        InputError: see `summarize`.
    """
    cells: dict[str, dict[str, Record]] = {}
    devices = set()
    for path in files:
        records = read(path)
        if not records:
            raise InputError(f"{path}: no cell of a visit is in it; it is named visit.jsonl")
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
    """How many times as fast as its reference each kernel is, by cell.

    Old visits also timed kernels that were deleted since; they are left out.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in KERNELS}
    for cell, record in kernels.items():
        if name := TIMED.get(cell.split()[0]):
            found[name][cell] = record["speedup"]
    return found


def proposals(kernels: dict[str, Record], machine: Record) -> list[str]:
    """A line for each kernel: on, to be deleted, to be restricted, or still unmeasured."""
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
