"""The finding of `sglm analyze landscape`, as JSON, table, sentence and picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglm.analyze.gradients.measure import LONG, SYNTHETIC, TRUNCATED

_COLORS = {TRUNCATED: "C0", LONG: "C2", SYNTHETIC: "C1"}


@dataclass(frozen=True, kw_only=True)
class LandscapeFinding:
    """The measurements on each run.

    Lengths are shares of the weights' norm; changes of the loss are in nats per token.

    Attributes:
        runs: The measurements of each run: `lines`, by kind of gradient and number of batches in
            it, with `change` (of the loss on other text, `[value, low, high]`), `beyond_truncated`
            (its difference from the truncated direction), `own_change` (on the gradient's own
            windows) and `kl` (before ‖ after) at each of `lengths`; `update_length`, of one update
            at the peak rate.
        plane: The first run's planes: `change` of the loss by kind of gradient, with one row for
            each length in `aside` and one column for each in `along`.
    """

    runs: Sequence[dict[str, Any]]
    plane: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """See `Finding`."""
        return {"runs": list(self.runs), "plane": self.plane}

    def rows(self) -> list[list[str]]:
        """See `Finding`: the lowest point of each line."""
        heading = ["run", "gradient", "batches", "lowest, mnat", "± 95 %", "at", "own", "KL"]
        rows = [heading]
        for run in self.runs:
            for kind, by_batches in run["lines"].items():
                for batches, line in by_batches.items():
                    rows.append([run["run"], kind, batches, *_lowest_cells(run, line)])
        return rows

    def summary(self) -> str:
        """See `Finding`: whether steps of the first run lower the loss."""
        run = self.runs[0]
        most = list(next(iter(run["lines"].values())))[-1]
        clauses = []
        for kind, by_batches in run["lines"].items():
            index = lowest(by_batches[most])
            value, _, high = by_batches[most]["change"][index]
            sure = "" if high < 0 else ", which may be noise" if value < 0 else ", so no decrease"
            is_longest = index == len(run["lengths"]) - 1
            last = " (the longest step tried)" if is_longest and value < 0 else ""
            clauses.append(f"{kind} {1e3 * value:+.1f} at {run['lengths'][index]:.1%}{last}{sure}")
        return (
            f"{run['run']}: lowest loss on other text along each gradient (mean of {most} batches),"
            " as its change in millinats per token at a step in per cent of the weights' norm:"
            f" {'; '.join(clauses)}."
        )

    def draw(self, figure: Any) -> None:
        """See `Finding`: lines of all runs above, planes of the first run below."""
        grid = figure.subplots(2, 3)
        change, own, divergence = grid[0]
        for run in self.runs:
            for kind, by_batches in run["lines"].items():
                for batches, style in zip(by_batches, (":", "-"), strict=False):
                    line = by_batches[batches]
                    drawn = {"color": _COLORS[kind], "linestyle": style, "linewidth": 1}
                    values = [1e3 * each[0] for each in line["change"]]
                    change.plot(run["lengths"], values, **drawn)
                    own.plot(run["lengths"], [1e3 * each for each in line["own_change"]], **drawn)
                    divergence.plot(run["lengths"], [1e3 * each for each in line["kl"]], **drawn)
        _label_lines(change, "other text", "loss, mnat")
        _label_lines(own, "the gradient's windows", "loss, mnat")
        _label_lines(divergence, "KL of predictions", "mnat")
        divergence.set_yscale("log")
        _limit(change)
        _limit(own)
        if self.runs[0]["adam"]:
            change.axvline(self.runs[0]["update_length"], color="0.6", linewidth=0.8)
        # The first run may have real gradients only: the legend shows a kind if any run has it.
        kinds = dict.fromkeys(kind for run in self.runs for kind in run["lines"])
        _legend(change, [*kinds], [*self.runs[0]["lines"][TRUNCATED]])
        for axes, kind in zip(grid[1], (TRUNCATED, LONG, SYNTHETIC), strict=True):
            _draw_plane(axes, self.plane, kind)
            axes.set_title(f"{self.runs[0]['run']}: {kind}", fontsize=8)


def lowest(line: dict[str, Any]) -> int:
    """Returns the index of the line's length at which the loss on other text is lowest."""
    values = [each[0] for each in line["change"]]
    return values.index(min(values))


def _lowest_cells(run: dict[str, Any], line: dict[str, Any]) -> list[str]:
    index = lowest(line)
    value, low, high = (1e3 * each for each in line["change"][index])
    return [
        f"{value:+.1f}",
        f"{low:+.1f}…{high:+.1f}",
        f"{run['lengths'][index]:.2%}",
        f"{1e3 * line['own_change'][index]:+.1f}",
        f"{1e3 * line['kl'][index]:.2f}",
    ]


def _label_lines(axes: Any, title: str, y: str) -> None:
    axes.set_title(title, fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("step / weights' norm", fontsize=7)
    axes.set_ylabel(y, fontsize=7)
    axes.tick_params(labelsize=6)
    axes.grid(alpha=0.3)


def _limit(axes: Any) -> None:
    """Limits the y axis, so that steep rises do not hide decreases."""
    low = min(float(min(line.get_ydata())) for line in axes.lines)
    depth = max(1.0, -low)
    axes.set_ylim(-1.1 * depth, 2 * depth)
    axes.axhline(0, color="0.5", linewidth=0.8)


def _legend(axes: Any, kinds: Sequence[str], batches: Sequence[str]) -> None:
    handles = [axes.plot([], [], color=_COLORS[kind], label=kind)[0] for kind in kinds]
    for number, style in zip(batches, (":", "-"), strict=False):
        label = f"{number} batch{'es' if number != '1' else ''}"
        handles += axes.plot([], [], color="0.3", linestyle=style, label=label)
    axes.legend(handles=handles, fontsize=5)


def _draw_plane(axes: Any, plane: dict[str, Any], kind: str) -> None:
    axes.tick_params(labelsize=6)
    if kind not in plane["change"]:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    along, aside = ([100 * each for each in plane[name]] for name in ("along", "aside"))
    values = [[1e3 * each for each in row] for row in plane["change"][kind]]
    lines = axes.contour(along, aside, values, levels=12, linewidths=0.8)
    axes.clabel(lines, fontsize=5)
    axes.plot(0, 0, "k+", markersize=5)
    axes.set_xlabel("along the update, % of the norm", fontsize=7)
    axes.set_ylabel("random, %", fontsize=7)
