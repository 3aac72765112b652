"""How the cost of a token grows with each size, for plain truncation and for an alternating run.

    python -m scripts.benchmarks.cost_curves runs/cost --pictures docs

One size is varied at a time around 2 × 256 units, a vocabulary of 7,300, 20 lanes, windows of 35
steps and a text of a million tokens. The time per token (both arms in turn, medians) and the peak
memory (each arm in a process of its own) are measured. So is the cost of learning over a horizon of
h steps: by windows of h, by reading h steps again at every window, or by synthetic gradients. Every
point is a JSON file in the folder; a point whose file exists is not measured again. Takes a quarter
of an hour on two cores.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.training.case import Place, Size
from scripts.benchmarks.training.worker import Task, running
from sglm.storage.durable import replace_text

BASE, BASE_TEXT = Size(), 1_000_000
SMALLEST = Size(layers=1, hidden=8, vocab_size=16, batch=1)  # the memory of Python and torch alone
ARMS = {"bptt": "real", "alternating": "alternating adjoint"}
AXES: dict[str, list[int]] = {
    "window": [5, 10, 20, 35, 70, 140],
    "batch": [5, 10, 20, 40, 80],
    "hidden": [64, 128, 256, 512, 1024],
    "layers": [1, 2, 3, 4],
    "vocab_size": [1_000, 3_000, 7_300, 15_000, 33_000],
    "text": [100_000, 1_000_000, 10_000_000, 100_000_000],
}
HORIZONS = [35, 140, 490, 980, 1995]  # multiples of the base's window
WAYS = ("window", "read again", "synthetic")
FEWEST_ROUNDS, SECONDS = 2, 10.0
PLACE = Place()


@dataclass(frozen=True)
class Point:
    """One size, and the number of tokens of the text."""

    size: Size
    text: int

    @property
    def name(self) -> str:
        size = self.size
        what = f"{size.layers}x{size.hidden}-v{size.vocab_size}-b{size.batch}-t{size.window}"
        return f"{what}-n{self.text}"


def points(axis: str) -> dict[int, Point]:
    """Returns the points along an axis, by their value on it."""
    if axis == "text":
        return {value: Point(BASE, value) for value in AXES[axis]}
    return {value: Point(replace(BASE, **{axis: value}), BASE_TEXT) for value in AXES[axis]}


def measure_point(point: Point) -> dict[str, Any]:
    """Measures microseconds per token and peak memory of both arms, and the synthesizer's share.

    An alternating run is timed over a block of each mode. The share of the time comes from timing
    the synthesizer's functions within a step (`parts`), because on a busy machine the difference
    between two processes is too noisy to show a few per cent.
    """
    threads = torch.get_num_threads()
    tasks = [Task(name, point.size, PLACE, threads, point.text) for name in ARMS.values()]
    with running(tasks) as (bptt, alternating):
        block, both = bptt.ask("block"), 2 * alternating.ask("block")
        bptt.ask("seconds", block)  # the first steps allocate memory
        alternating.ask("seconds", both)
        taken: list[tuple[float, float]] = []
        shares: list[float] = []
        end = time.perf_counter() + SECONDS
        while len(taken) < FEWEST_ROUNDS or time.perf_counter() < end:
            taken.append((bptt.ask("seconds", block), alternating.ask("seconds", both)))
            shares.append(alternating.ask("shares")["synthesizer"])
        found: dict[str, Any] = {"rounds": len(taken)}
        for index, (label, arm) in enumerate(zip(ARMS, (bptt, alternating), strict=True)):
            seconds = statistics.median(times[index] for times in taken)
            found[label] = {
                "us_per_token": 1e6 * seconds / point.size.tokens,
                "peak_memory_mb": arm.ask("memory_mb"),
            }
    return found | {"synthesizer_share": statistics.median(shares)}


def measure_horizon(way: str, horizon: int) -> dict[str, float]:
    """Measures microseconds per token and peak memory of a run that learns over `horizon` steps."""
    size, name, longer = BASE, ARMS["bptt"], None
    if way == "window":
        size = replace(BASE, window=horizon)
    elif way == "read again":
        longer = horizon
    else:
        name = ARMS["alternating"]
    task = Task(name, size, PLACE, torch.get_num_threads(), horizon=longer)
    with running([task]) as (arm,):
        windows = 2 if name == ARMS["bptt"] else 2 * arm.ask("block")
        arm.ask("seconds", windows)
        seconds = arm.ask("seconds", windows)
        memory_mb = arm.ask("memory_mb")
    return {"us_per_token": 1e6 * seconds / size.tokens, "peak_memory_mb": memory_mb}


def measure_empty() -> dict[str, float]:
    """Measures the memory of each arm at the smallest size: that of Python and torch."""
    tasks = [Task(name, SMALLEST, PLACE, torch.get_num_threads()) for name in ARMS.values()]
    with running(tasks) as processes:
        for process in processes:
            process.ask("seconds", 2 * process.ask("block"))
        return {
            label: process.ask("memory_mb") for label, process in zip(ARMS, processes, strict=True)
        }


def measured(path: Path, measure: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Returns the content of the file; if there is none, measures first and writes it."""
    if not path.exists():
        print(path.stem, end=" … ", file=sys.stderr, flush=True)
        start = time.perf_counter()
        found = measure(*arguments)
        replace_text(path, json.dumps(found, indent=1) + "\n")
        print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def measure_all(folder: Path) -> dict[str, Any]:
    """Measures all points: `empty` (memory at the smallest size, by arm), `axes`, `horizon`."""
    folder.mkdir(parents=True, exist_ok=True)

    axes = {
        axis: {
            value: measured(folder / f"{point.name}.json", measure_point, point)
            for value, point in points(axis).items()
        }
        for axis in AXES
    }
    horizon: dict[str, dict[int, Any]] = {}
    for way in WAYS:
        # Synthetic gradients have no horizon to set: one run stands for all.
        for steps in HORIZONS[:1] if way == "synthetic" else HORIZONS:
            path = folder / f"horizon-{way.replace(' ', '-')}-{steps}.json"
            horizon.setdefault(way, {})[steps] = measured(path, measure_horizon, way, steps)
    empty = measured(folder / "empty.json", measure_empty)
    return {"empty": empty, "axes": axes, "horizon": horizon}


def table(result: dict[str, Any]) -> str:
    """Returns a table of all points, one line each."""
    lines = [f"{'':12}{'':>12}{'µs a token':>22}{'share':>8}{'peak MB':>20}"]
    for axis, found in result["axes"].items():
        for value, point in found.items():
            bptt, alternating = point["bptt"], point["alternating"]
            lines.append(
                f"{axis:12}{value:12,}{bptt['us_per_token']:11.1f}"
                f"{alternating['us_per_token']:11.1f}{point['synthesizer_share']:8.1%}"
                f"{bptt['peak_memory_mb']:10,.0f}{alternating['peak_memory_mb']:10,.0f}"
            )
    for way, found in result["horizon"].items():
        for steps, point in found.items():
            lines.append(
                f"{way:12}{steps:12,}{point['us_per_token']:22.1f}"
                f"{'':8}{point['peak_memory_mb']:20,.0f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.cost_curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, help="folder for the points")
    parser.add_argument("--pictures", type=Path, help="folder for two PNG files (needs matplotlib)")
    arguments = parser.parse_args()
    result = measure_all(arguments.out)
    print(table(result))
    if arguments.pictures is not None:
        from scripts.benchmarks.cost_pictures import draw_axes, draw_horizon

        draw_axes(result, arguments.pictures / "cost-curves.png")
        draw_horizon(result, BASE.window, arguments.pictures / "cost-horizon.png")


if __name__ == "__main__":
    main()
