"""The picture of `sglm analyze curvature`: four panels, with one colour per weight matrix."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sglm.analyze.curvature.groups import Group, chance

_COLOURS = ("#1f77b4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def draw(groups: Sequence[Group], figure: Any, *, title: str) -> None:
    """Draws spectra, rank-1 shares, overlaps, and the overlaps between runs by number of vectors.

    Args:
        groups: The weight matrices.
        figure: A matplotlib figure.
        title: The title above all panels.
    """
    coloured = [(group, _COLOURS[index % len(_COLOURS)]) for index, group in enumerate(groups)]
    figure.suptitle(title, fontsize=11)
    spectra, ranks, agreement, between = figure.subplots(2, 2).flat
    _spectra(spectra, coloured)
    _ranks(ranks, coloured)
    _agreement(agreement, coloured)
    _between(between, coloured)
    for axes in (spectra, ranks, agreement, between):
        axes.tick_params(labelsize=8)
        axes.legend(fontsize=7)


def _spectra(axes: Any, coloured: list[tuple[Group, str]]) -> None:
    for group, colour in coloured:
        for of, style, label in (("hessian", "-", "Hessian"), ("gauss_newton", "--", "GN")):
            values = np.mean([each.values[of]["values"] for each in group.measurements], 0)
            index = np.arange(1, len(values) + 1)
            axes.plot(index, values, style, color=colour, label=f"{group.weight}, {label}")
    axes.set_title("Top eigenvalues", fontsize=9)
    axes.set_xlabel("index", fontsize=8)
    axes.set_ylabel("nats per token / weight²", fontsize=8)
    axes.set_ylim(0, 1.4 * axes.dataLim.ymax)  # room for the legend


def _ranks(axes: Any, coloured: list[tuple[Group, str]]) -> None:
    for group, colour in coloured:
        for of, style, label in (("hessian", "-", "Hessian"), ("gauss_newton", "--", "GN")):
            shares = np.mean([each.values[of]["rank_one"] for each in group.measurements], 0)
            index = np.arange(1, len(shares) + 1)
            axes.plot(index, shares, style, color=colour, label=f"{group.weight}, {label}")
    axes.axhline(chance(coloured[0][0])["rank_one"], color="grey", ls=":", label="random")
    axes.set_title("Rank-1 share of the eigenvectors", fontsize=9)
    axes.set_xlabel("index", fontsize=8)
    axes.set_ylabel("σ₁² / Σσ²", fontsize=8)
    axes.set_ylim(0, 1)


def _agreement(axes: Any, coloured: list[tuple[Group, str]]) -> None:
    names = {
        "hessian_gauss_newton": "H, GN",
        "expand": "expand,\nGN",
        "reduce": "reduce,\nGN",
        "same_seed": "runs,\nseed=",
        "other_seed": "runs,\nseed≠",
    }
    width = 0.8 / len(coloured)
    for index, (group, colour) in enumerate(coloured):
        heights = [group.observed[name] for name in names]
        places = np.arange(len(names)) + (index - (len(coloured) - 1) / 2) * width
        axes.bar(places, heights, width, color=colour, label=group.weight)
    axes.set_xticks(range(len(names)), list(names.values()))
    count = len(coloured[0][0].measurements[0].values["gauss_newton"]["values"])
    axes.set_title(f"Overlap of the top {count} eigenvectors' spaces", fontsize=9)
    axes.set_ylabel("overlap", fontsize=8)
    axes.set_ylim(0, 1)


def _between(axes: Any, coloured: list[tuple[Group, str]]) -> None:
    for group, colour in coloured:
        for same, style, label in ((True, "-", "seed="), (False, "--", "seed≠")):
            pairs = [each for each in group.pair_overlaps if each["same_seed"] is same]
            if pairs:
                curve = np.mean([each["kronecker"] for each in pairs], 0)
                label = f"{group.weight}, {label}"
                axes.plot(pairs[0]["sizes"], curve, style, color=colour, label=label)
    rows, columns = coloured[0][0].measurements[0].values["shape"]
    sizes = np.array([1, rows, 2 * rows])
    axes.plot(sizes, sizes / (rows * columns), ":", color="grey", label="chance")
    axes.axvline(rows, color="grey", lw=0.7)
    axes.set_xscale("log")
    axes.set_title("Two runs' Kronecker products (line: outputs 4H)", fontsize=9)
    axes.set_xlabel("vectors", fontsize=8)
    axes.set_ylabel("overlap", fontsize=8)
    axes.set_ylim(0, 1)
