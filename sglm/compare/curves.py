"""Draws the learning curves, if matplotlib is installed (the extra `plots`)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglm.compare.runs import FinishedRun
from sglm.compare.variants import VARIANTS
from sglm.storage.picture import WITHOUT_MATPLOTLIB, can_draw, save_picture

# The first steps, in which perplexity falls from the vocabulary's size, would flatten the rest.
_SHARE_LEFT_OUT = 0.2
_MARKERS = "os^vDP*Xd<>p"
NOT_DRAWN = f"curves.png {WITHOUT_MATPLOTLIB}"


def draw(runs: Sequence[FinishedRun], path: Path) -> None:
    """Draws validation perplexity over updates: each variant's mean and range over seeds.

    Draws nothing without runs or without matplotlib.
    """
    if not runs or not can_draw():
        return
    save_picture(path, lambda figure: _draw(figure, runs))


def _draw(figure: Any, runs: Sequence[FinishedRun]) -> None:
    axes = figure.subplots()
    late: list[float] = []
    names = [name for name in VARIANTS if any(run.variant == name for run in runs)]
    for index, name in enumerate(names):
        steps, mean, low, high = band([run for run in runs if run.variant == name])
        # Dashes and markers, because equal curves hide each other.
        axes.plot(
            steps,
            mean,
            color=f"C{index}",
            linestyle="--" if VARIANTS[name].restarts else "-",
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4,
            label=f"{name}: {mean[-1]:.5g}",
        )
        axes.fill_between(steps, low, high, color=f"C{index}", alpha=0.12, linewidth=0)
        start = _SHARE_LEFT_OUT * steps[-1]
        late += [
            value
            for step, pair in zip(steps, zip(low, high, strict=True), strict=True)
            for value in pair
            if step >= start and math.isfinite(value)
        ]
    if late and min(late) < max(late):
        margin = 0.05 * (max(late) - min(late))
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.set_xlabel("updates")
    axes.set_ylabel("validation perplexity (per token)")
    axes.grid(alpha=0.3)
    axes.set_title("mean over seeds (legend: at the end), lowest to highest", fontsize=10)
    axes.legend()


def band(
    runs: Sequence[FinishedRun],
) -> tuple[list[int], list[float], list[float], list[float]]:
    """Returns steps, and mean, lowest and highest perplexity at each, of one variant's runs."""
    columns = list(zip(*(run.token_ppl for run in runs), strict=True))
    mean = [sum(column) / len(column) for column in columns]
    return runs[0].steps, mean, [min(column) for column in columns], [max(c) for c in columns]
