r"""Draws the results of `scripts.experiments.frontier`, a panel for each corpus.

    python -m scripts.experiments.frontier_picture docs/frontier.png \
        docs/data/short-windows/{words,code}.json

A file is a `frontier.json`, or one of the documentation's, to which other experiments add points.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from sglm.storage.durable import replace_file

_COLOURS = {"bptt": "C0", "adjoint": "C1"}


def read(path: Path) -> dict[str, Any]:
    """Reads the data for `draw`; computes the shares if the file has none."""
    from scripts.experiments.frontier import CEILING, shares  # here, because it imports this module

    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {"shares": shares(result["perplexities"], CEILING), **result}


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the share of the gap over time, with a bar from the lowest seed to the highest.

    Args:
        results: Contents of `frontier.json` files, with times.
        path: Path of the PNG file.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(6 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, result in zip(panels, results, strict=False):
        _draw_panel(axes, result)
    for axes in panels[len(results) :]:
        axes.set_axis_off()
    replace_file(path, lambda aside: figure.savefig(aside, format="png", dpi=110))


def _draw_panel(axes: Any, result: dict[str, Any]) -> None:
    for prefix, colour in _COLOURS.items():
        times = {p: t["ratio"] for p, t in result["times"].items() if p.startswith(prefix)}
        points = sorted(times, key=lambda point: float(times[point]))
        shares = [[100 * share for share in result["shares"][point]] for point in points]
        means = [mean(each) for each in shares]
        bars = [
            [m - min(each) for m, each in zip(means, shares, strict=True)],
            [max(each) - m for m, each in zip(means, shares, strict=True)],
        ]
        at = [times[point] for point in points]
        style = {"linestyle": "-" if prefix == "bptt" else "", "marker": "o", "capsize": 3}
        axes.errorbar(at, means, bars, color=colour, **style)
        for point, x, y in zip(points, at, means, strict=True):
            style = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
            # Labels above and below, because the points often lie close together.
            offset = 9 if prefix == "bptt" else -15
            axes.annotate(point, (x, y), xytext=(0, offset), **style)
    axes.margins(x=0.18, y=0.15)
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xlabel("time of a step, as a multiple of bptt's")
    axes.set_ylabel("share of the horizon gap, %")
    axes.set_title(result["title"].replace("*", ""), fontsize=10)  # the tables need them
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.frontier_picture",
        description=(__doc__ or "").split("\n")[0],
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    draw([read(each) for each in arguments.files], arguments.picture)


if __name__ == "__main__":
    main()
