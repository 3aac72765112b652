"""The picture of the comparison of representations."""

from statistics import fmean
from typing import Any

import numpy as np

from sglm.analyze.representations.comparison_data import ComparisonData

# Mostly from the palette of Okabe and Ito, whose colours colour-blind people can distinguish.
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
    "#882255",
)
_MATRICES = 3
_SMALL = 7.5


def draw_representations(figure: Any, finding: ComparisonData) -> None:
    """Draws function against layers, CKA by layer, probes, dissimilarities and implied losses."""
    above, below = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    top = above.subplots(1, 3)
    for axes, draw in zip(top, (_draw_pairs, _draw_layers, _draw_probes), strict=True):
        draw(axes, finding)
    if finding.pairs:
        handles, names = top[1].get_legend_handles_labels()
        above.legend(
            handles, names, fontsize=_SMALL, loc="outside upper center", ncols=3, frameon=False
        )
    else:
        for axes in top[:2]:
            axes.set_axis_off()
    left, right = below.subfigures(1, 2, width_ratios=(2, 1))
    _draw_matrices(left, finding)
    if finding.fields_by_label:
        _draw_paths(right.subplots(), finding)
    for axes in figure.axes:
        axes.tick_params(labelsize=_SMALL)
        axes.title.set_fontsize(_SMALL + 2)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(_SMALL + 1)


def _draw_pairs(axes: Any, finding: ComparisonData) -> None:
    """Draws a mark for each pair of runs: the distance of predictions and last hidden states."""
    colour_of = {
        (group.labels, group.same_seed): _COLOURS[number % len(_COLOURS)]
        for number, group in enumerate(finding.groups)
    }
    for pair in finding.pairs:
        one, other = (finding.models[name] for name in pair["runs"])
        labels = sorted((one["label"], other["label"]), key=finding.labels.index)
        colour = colour_of[(labels[0], labels[1]), one["seed"] == other["seed"]]
        hidden = [row[name] for name, row in pair["cka"].items() if name in row and "hid" in name]
        marker = "o" if one["label"] == other["label"] else "x"
        axes.plot(pair["kl_nats"], 1 - hidden[-1], marker, color=colour, markersize=5)
    axes.set_title("function and layer: pairs of runs")
    axes.set_xlabel("KL of the predictions (nats)")
    axes.set_ylabel("1 − CKA of the last hidden state")
    axes.margins(0.15)


def _draw_layers(axes: Any, finding: ComparisonData) -> None:
    for number, group in enumerate(finding.groups):
        layers = list(group.means["cka"])
        axes.plot(
            layers,
            list(group.means["cka"].values()),
            marker="o" if group.is_yardstick else "x",
            linestyle="-" if group.is_yardstick else "--",
            color=_COLOURS[number % len(_COLOURS)],
            label=group.name,
            markersize=4,
            linewidth=1,
        )
    axes.set_title("CKA between runs")
    axes.set_ylabel("linear CKA, debiased")
    _name_layers(axes)


def _draw_probes(axes: Any, finding: ComparisonData) -> None:
    for number, label in enumerate(finding.labels):
        probes = [model["probes"]["class"] for model in finding.of_label(label)]
        layers = [name for name in probes[0] if name != "chance"]
        means = [fmean(each[name] for each in probes) for name in layers]
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(layers, means, "o-", color=colour, label=label, markersize=4, linewidth=1)
    chance = next(iter(finding.models.values()))["probes"]["class"]["chance"]
    axes.axhline(chance, color="grey", linestyle=":", label="most frequent class")
    axes.set_title("probe: class of the next token")
    axes.set_ylabel("accuracy")
    axes.legend(fontsize=_SMALL - 1)
    _name_layers(axes)


def _name_layers(axes: Any) -> None:
    axes.tick_params(axis="x", rotation=30)
    axes.margins(x=0.1)


def _draw_matrices(figure: Any, finding: ComparisonData) -> None:
    """Draws the dissimilarities of last hidden states between classes, of one run per label."""
    labels, matrices = finding.labels[:_MATRICES], []
    for label in labels:
        layers = finding.of_label(label)[0]["class_dissimilarity"]
        matrices.append(np.array(layers[[name for name in layers if "hidden" in name][-1]]))
    every = figure.subplots(1, len(labels), squeeze=False)[0]
    low, high = min(map(np.min, matrices)), max(map(np.max, matrices))
    for axes, matrix, label in zip(every, matrices, labels, strict=True):
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap="viridis", origin="lower")
        axes.set_title(label)
        axes.set_xlabel("next token's class")
    bar = figure.colorbar(image, ax=list(every), location="bottom", shrink=0.7, aspect=40)
    bar.set_label(
        "dissimilarity of last hidden states (1 − r); class 0: the most frequent tokens",
        fontsize=_SMALL,
    )


def _draw_paths(axes: Any, finding: ComparisonData) -> None:
    for label, fields in finding.fields_by_label.items():
        colour = _COLOURS[finding.labels.index(label) % len(_COLOURS)]
        implied, true = (
            np.mean([field[name] for field in fields], axis=0)
            for name in ("implied_nats", "true_nats")
        )
        way = np.linspace(0, 1, len(true))
        axes.plot(way, implied, "-", color=colour, label=f"{label}: implied", linewidth=1.2)
        axes.plot(way, true, ":", color=colour, label="true", linewidth=1.2)
    axes.set_title("implied and true loss")
    axes.set_xlabel("from another text's state to the text's own")
    axes.set_ylabel("coming nats, less those at the start")
    axes.legend(fontsize=_SMALL - 1)
