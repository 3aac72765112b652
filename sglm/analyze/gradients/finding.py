"""The finding of `sglm analyze gradients`, as JSON, table, sentence and picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglm.analyze.gradients.measure import LONG, SYNTHETIC, TRUNCATED

_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class GradientsFinding:
    """The measurements on each run; estimates are `[value, low, high]` with a 95 % interval.

    Attributes:
        runs: The measurements of each run, in the order in which the runs were given: `gradients`
            (by kind: agreement with the long horizon's, in `parameters` and `states`), `variance`;
            for a synthetic gradient `worth`, `by_distance` and `by_part`; for a critic `values`.
    """

    runs: Sequence[dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        """See `Finding`."""
        return {"runs": list(self.runs)}

    def rows(self) -> list[list[str]]:
        """See `Finding`: truncated and synthetic gradients against that of the long horizon."""
        heading = ["run", "gradient", "cosine", "norm", "bias", "± 95 %", "state error", "worth"]
        rows = [heading]
        for run in self.runs:
            for kind in (TRUNCATED, SYNTHETIC):
                if kind in run["gradients"]:
                    rows.append([run["run"], kind, *_cells(run, kind)])
        return rows

    def summary(self) -> str:
        """See `Finding`: the worth of the first synthetic gradient, or else truncation's bias."""
        first = next((run for run in self.runs if SYNTHETIC in run["gradients"]), None)
        run = self.runs[0] if first is None else first
        truncated = run["gradients"][TRUNCATED]["parameters"]["bias"]
        missing = "" if first else f" Nothing synthetic was measured: {run['missing']}."
        if not truncated[1] > 0:  # NaN, too
            return (
                f"{run['run']}: {run['windows']:,} windows are too few to distinguish what"
                " truncation loses of the long horizon's mean gradient from noise; give more"
                f" --windows, or --data with a longer text.{missing}"
            )
        if first is None:
            return (
                f"{run['run']}: truncation after {run['window']} steps loses"
                f" {_share(truncated)} of the long horizon's gradient"
                f" (squared norm of the bias in the LSTM's weights).{missing}"
            )
        bias = first["gradients"][SYNTHETIC]["parameters"]["bias"]
        worth, low, high = first["worth"]["parameters"]
        worth_clause = (
            f"they are worth a real horizon of {worth:.1f} steps ({low:.1f} to {high:.1f})"
        )
        if not low > first["window"]:
            worth_clause = (
                f"whether they are worth more than those {first['window']} steps is uncertain"
                f" ({low:.1f} to {high:.1f})"
            )
        return (
            f"{first['run']}: the bias is {_share(truncated)} of the long horizon's squared"
            f" gradient with truncation after {first['window']} steps, and {_share(bias)} with"
            f" synthetic gradients; {worth_clause}.{_of_values(first)}"
        )

    def draw(self, figure: Any) -> None:
        """See `Finding`: variance, bias by horizon, error by reach, cosine by part of the state."""
        variance, bias, distance, parts = figure.subplots(2, 2).flatten()
        for index, run in enumerate(self.runs):
            color = f"C{index % 10}"
            _draw_variance(variance, run, color)
            _draw_bias(bias, run, color)
            if run["by_distance"]:
                _draw_distance(distance, run, color)
        synthetic = [(n, run) for n, run in enumerate(self.runs) if run["by_part"]]
        _draw_parts(parts, synthetic)
        _label(variance, "variance", x="batches in the mean", y="mean pairwise cosine")
        _label(bias, "in the LSTM's weights (dashed: synthetic)", x="real horizon, steps", y="bias")
        _label(distance, "synthetic state gradients", x="exact reach, steps", y="relative error")
        _label(parts, "by part of the state", x="", y="cosine to the long horizon")
        variance.set_xscale("log", base=2)
        bias.set_ylim(bottom=0)
        distance.set_ylim(bottom=0)
        if not synthetic:
            for axes in (distance, parts):
                axes.text(0.5, 0.5, "no synthetic gradients", ha="center", transform=axes.transAxes)
        bias.legend(fontsize=6)


def _share(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:.0%} ({low:.0%} to {high:.0%})"


def _of_values(run: dict[str, Any]) -> str:
    if run["values"] is None:
        return ""
    explained, low, high = run["values"]["explained"]
    return (
        f" The critic's values explain {explained:.1%} ({low:.1%} to {high:.1%}) of the variance of"
        f" the discounted loss of the next {run['values']['steps']} steps."
    )


def _cells(run: dict[str, Any], kind: str) -> list[str]:
    of_kind = run["gradients"][kind]
    parameters = of_kind["parameters"]
    bias, low, high = parameters["bias"]
    is_valued = kind == SYNTHETIC and run["worth"] is not None
    worth = run["worth"]["parameters"][0] if is_valued else run["window"]
    return [
        _number(parameters["cosine"][0]),
        _number(parameters["norm"][0]),
        _number(bias),
        f"{_number(low)}…{_number(high)}",
        _number(of_kind["states"]["error"][0]),
        f"{worth:.1f}" if math.isfinite(worth) else "—",
    ]


def _number(value: float | None) -> str:
    return "—" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _draw_variance(axes: Any, run: dict[str, Any], color: str) -> None:
    variance = run["variance"]
    for kind, line in zip((TRUNCATED, LONG, SYNTHETIC), _LINES, strict=False):
        if kind in variance["cosine"]:
            values = [each[0] for each in variance["cosine"][kind]]
            axes.plot(variance["batches"], values, color=color, linestyle=line, linewidth=1)
    if not axes.get_legend():
        handles = [
            axes.plot([], [], color="0.3", linestyle=line, label=kind)[0]
            for kind, line in zip((TRUNCATED, LONG, SYNTHETIC), _LINES, strict=False)
        ]
        axes.legend(handles=handles, fontsize=6)


def _draw_bias(axes: Any, run: dict[str, Any], color: str) -> None:
    real = [each for each in run["gradients"].values() if each["horizon"] is not None]
    horizons = [each["horizon"] for each in real]
    values, low, high = zip(*(each["parameters"]["bias"] for each in real), strict=True)
    axes.plot(horizons, values, color=color, marker="o", markersize=3, label=run["run"])
    axes.fill_between(horizons, low, high, color=color, alpha=0.15, linewidth=0)
    if SYNTHETIC in run["gradients"]:
        bias = run["gradients"][SYNTHETIC]["parameters"]["bias"][0]
        axes.axhline(bias, color=color, linestyle="--", linewidth=1)


def _draw_distance(axes: Any, run: dict[str, Any], color: str) -> None:
    reaches = [each["reach"] for each in run["by_distance"]]
    errors, low, high = zip(*(each["error"] for each in run["by_distance"]), strict=True)
    axes.plot(reaches, errors, color=color, marker="o", markersize=3)
    axes.fill_between(reaches, low, high, color=color, alpha=0.15, linewidth=0)


def _draw_parts(axes: Any, runs: Sequence[tuple[int, dict[str, Any]]]) -> None:
    width = 0.8 / max(1, len(runs))
    for place, (index, run) in enumerate(runs):
        names = list(run["by_part"])
        left = [n + (place + 0.5) * width - 0.4 for n in range(len(names))]
        heights = [run["by_part"][name]["cosine"][0] for name in names]
        axes.bar(left, heights, width=width, color=f"C{index % 10}")
        axes.set_xticks(range(len(names)), names)


def _label(axes: Any, title: str, *, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
