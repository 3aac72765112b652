"""Tables of the results that `scripts/gpu summary` wrote, and of the kernels."""

import json
from pathlib import Path
from typing import Any

from scripts.benchmarks.training.case import Size
from scripts.documentation.pages import Maker, markdown
from scripts.gpu_visit.speed import TURNS
from scripts.gpu_visit.summary import speedups
from sglm.errors import InputError
from sglm.kernels.choice import KERNELS

FOLDER = "benchmarks"
_NOTHING = "not measured"


def kernels_table(names: list[str], docs: Path) -> str:
    """Returns a table of kernels: on or off by default, and the speedup on each machine."""
    machines = {path.stem: _read(path) for path in sorted((docs / FOLDER).glob("*-gpu.json"))}
    rows = [["kernel of", "by default", "times as fast as its reference", "needed"]]
    for name, kernel in KERNELS.items():
        measured = []
        for machine, cells in machines.items():
            if found := speedups(cells.get("kernels", {}))[name]:
                least, most = min(found.values()), max(found.values())
                measured.append(f"{least:.2f} to {most:.2f} ({machine.removesuffix('-gpu')})")
        if not measured and kernel.measured is not None:
            about = f"about {kernel.measured.speedup:.1f} (an estimate; {kernel.measured.device})"
            measured.append(about)
        rows.append(
            [
                f"`{name}`",
                "on" if kernel.on_by_default else "off",
                "; ".join(measured) or _NOTHING,
                f"{kernel.needed:g}",
            ]
        )
    return markdown(rows)


def training_table(names: list[str], docs: Path) -> str:
    """Returns a table of milliseconds per window in each turn, beside the floor, by cell."""
    cells = [_read(docs / FOLDER / f"{name}-gpu.json") for name in names]
    if not cells:
        return _NOTHING
    rows = [["case", "precision", "LSTM", "graph", *TURNS, "products, bytes at best", "peak MB"]]
    for machine in cells:
        for name, cell in machine.get("bench", {}).items():
            floor = machine.get("floor", {}).get(_floor_of(cell, machine.get("floor", {})))
            least = "" if floor is None else f"{floor['ms_at_best']:.2f} + {floor['ms_moving']:.2f}"
            plain = [f"{cell['plain_ms']:.2f}", "", ""] if "plain_ms" in cell else None
            times = plain or [f"{cell[f'{turn}_ms']:.2f}" for turn in TURNS]
            peak = max(value for key, value in cell.items() if key.endswith("_peak_mb"))
            graph = "yes" if cell["cuda_graph"] else ""
            what = f"{name}: {Size(**cell['size'])}"
            rows.append(
                [
                    what,
                    cell["precision"],
                    cell.get("lstm", ""),
                    graph,
                    *times,
                    least,
                    f"{peak:,.0f}",
                ]
            )
    return markdown(rows)


def _floor_of(cell: dict[str, Any], floors: dict[str, Any]) -> str:
    """Returns the name of the floor's cell of that size and type; `bench` may have several."""
    for name, floor in floors.items():
        if (floor["size"], floor["precision"]) == (cell["size"], cell["precision"]):
            return name
    return ""


def learning_table(names: list[str], docs: Path) -> str:
    """Returns a table of validation perplexity over the epochs, by arm."""
    rows = [["arm", "size", "precision", "best perplexity", "at each validation", "minutes"]]
    for name in names:
        for arm, cell in _read(docs / FOLDER / f"{name}-gpu.json").get("learning", {}).items():
            if cell.get("token_ppl"):
                ppl = cell["token_ppl"]
                curve = ", ".join(f"{each:.1f}" for each in ppl)
                minutes = f"{cell['train_seconds'] / 60:.1f}"
                rows.append(
                    [arm, cell["size"], cell["precision"], f"{min(ppl):.1f}", curve, minutes]
                )
    return markdown(rows) if len(rows) > 1 else _NOTHING


TABLES: dict[str, Maker] = {
    "kernels": kernels_table,
    "gpu-training": training_table,
    "gpu-learning": learning_table,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; scripts/gpu summary writes it") from None
    return result
