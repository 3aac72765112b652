"""Draws the pictures of `cost_curves`; memory is shown without that of Python and torch."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = {
    "window": "window T, steps",
    "batch": "lanes B",
    "hidden": "units H",
    "layers": "layers L",
    "vocab_size": "vocabulary V",
    "text": "text, tokens",
}
STYLES: dict[str, dict[str, Any]] = {
    "bptt": {"color": "black", "marker": "o", "label": "plain truncation"},
    "alternating": {
        "color": "#d1495b",
        "marker": "s",
        "label": "alternating (adjoint); in %: its share of the time",
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "window": {"color": "#30638e", "marker": "^", "label": "BPTT, window h"},
    "read again": {"color": "black", "marker": "o", "label": "BPTT(h; {T}): h steps read again"},
    "synthetic": {"color": "#d1495b", "marker": None, "label": "synthetic gradients, T = {T}"},
}


def draw_axes(result: dict[str, Any], path: Path) -> None:
    """Draws time above memory for each size that was varied, three to a row."""
    axes = list(result["axes"])
    figure, grid = plt.subplots(4, 3, figsize=(9, 10.5), layout="constrained")
    for index, axis in enumerate(axes):
        above, below = grid[index // 3 * 2 : index // 3 * 2 + 2, index % 3]
        found = result["axes"][axis]
        for arm, style in STYLES.items():
            times = [point[arm]["us_per_token"] for point in found.values()]
            held = [point[arm]["peak_memory_mb"] - result["empty"][arm] for point in found.values()]
            above.plot(list(found), times, markersize=4, **style)
            below.plot(list(found), held, markersize=4, **style)
        for value, point in found.items():
            above.annotate(
                f"{point['synthesizer_share']:.0%}",
                (value, point["alternating"]["us_per_token"]),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=STYLES["alternating"]["color"],
            )
        for panel in (above, below):
            _scale(panel, list(found), log=axis != "layers")
            # From zero, so that a constant cost looks constant, and with room for the shares above.
            panel.set_ylim(0, 1.12 * panel.get_ylim()[1])
        below.set_xlabel(NAMES[axis])
    for row, label in enumerate(("µs a token", "memory, MB") * 2):
        grid[row, 0].set_ylabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_horizon(result: dict[str, Any], window: int, path: Path) -> None:
    """Draws memory and time over the horizon, the number of steps that gradients span."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for way, found in result["horizon"].items():
        style = WAYS[way] | {"label": WAYS[way]["label"].format(T=window)}
        for panel, key in ((left, "peak_memory_mb"), (right, "us_per_token")):
            empty = result["empty"]["alternating" if way == "synthetic" else "bptt"]
            less = empty if panel is left else 0
            values = [max(point[key] - less, 1) for point in found.values()]  # for the log axis
            if way == "synthetic":
                panel.axhline(values[0], **style)
            else:
                panel.plot(list(found), values, markersize=4, **style)
    steps = list(result["horizon"]["window"])
    for panel, label in ((left, "memory, MB"), (right, "µs a token")):
        _scale(panel, steps, log=True)
        panel.set_yscale("log")
        panel.set_xlabel("horizon h, steps")
        panel.set_ylabel(label)
        panel.grid(alpha=0.3, which="both")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _scale(panel: Any, values: list[int], log: bool) -> None:
    """Puts a tick at each value and nowhere else."""
    if log:
        panel.set_xscale("log")
    panel.set_xticks(values, [_short(value) for value in values], fontsize=8)
    panel.minorticks_off()
    panel.margins(x=0.08)
    panel.grid(alpha=0.3)


def _short(value: int) -> str:
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return str(value)
