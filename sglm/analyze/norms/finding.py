"""The finding of `norms`: data, table, sentence and picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Layers = Mapping[str, Mapping[str, float]]


class Overall(NamedTuple):
    """The summary of a run over all of its layers.

    Attributes:
        first, last: Norm of all matrices together, at the first and at the last validation
            with norms.
        rate: Mean effective rate over the second half of the run.
        l2_share: The share of L2 in Adam's first moment, its mean over layers and validations; NaN
            unless decay is an L2 term in Adam.
        sharpness: Sharpness of the last snapshot.
        perplexity: Lowest perplexity of all validations.
    """

    first: float
    last: float
    rate: float
    l2_share: float
    sharpness: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class NormsFinding:
    """What was logged and measured for each run.

    Attributes:
        runs: A mapping for each run. `run`: its name. `decay`: the kind of decay. `lowest_ppl`:
            the lowest perplexity of all validations. `training`: for each validation with norms
            `step`, `lr`, `token_ppl` and `layers`, which has by layer the means of `weight`,
            `update`, `effective_rate` and, with Adam, `l2_share` since the validation before.
            `snapshots`: `name`, and `sharpness` by layer in nats per token.
        overall: Key under which `sharpness` holds the value of all layers moved at once.
    """

    runs: Sequence[dict[str, Any]]
    overall: str

    def as_json(self) -> dict[str, Any]:
        """Returns the data of all runs, each with its `Overall`."""
        return {"runs": [{**run, "overall": self._overall(run)._asdict()} for run in self.runs]}

    def rows(self) -> list[list[str]]:
        """Returns a table with one row per run."""
        heading = ["run", "decay", "‖w‖ first", "last", "rate", "L2", "sharp", "ppl"]
        return [heading, *(self._row(run) for run in self.runs)]

    def _row(self, run: dict[str, Any]) -> list[str]:
        found = self._overall(run)
        share = "" if math.isnan(found.l2_share) else f"{found.l2_share:.1%}"
        numbers = [f"{found.first:.4g}", f"{found.last:.4g}", f"{found.rate:.2e}", share]
        return [
            run["run"],
            run["decay"],
            *numbers,
            f"{found.sharpness:.3g}",
            f"{found.perplexity:.2f}",
        ]

    def summary(self) -> str:
        """Returns which run ends with the smallest weights, and how its updates compare."""
        found = {run["run"]: self._overall(run) for run in self.runs}
        small = min(found, key=lambda name: found[name].last)
        large = max(found, key=lambda name: found[name].last)
        best = min(found, key=lambda name: _or_infinite(found[name].perplexity))
        if len(found) == 1:
            one = found[small]
            return (
                f"{small}: the weights went from length {one.first:.4g} to {one.last:.4g}, and an"
                f" update in the second half of the run moves them by {one.rate:.1e} of their"
                " length."
            )
        shrunk = found[small].last / found[large].last
        faster = found[small].rate / found[large].rate
        return (
            f"{small} ends with the smallest weights, {shrunk:.2f} times as long as those of"
            f" {large}, and its updates in the second half of the run, relative to the weights, are"
            f" {faster:.2f} times as large. The lowest perplexity is that of {best},"
            f" {found[best].perplexity:.2f}."
        )

    def draw(self, figure: Any) -> None:
        """Draws weights, rates and L2's share over steps, and sharpness over snapshots."""
        (weight, rate), (share, sharpness) = figure.subplots(2, 2)
        for run in self.runs:
            training, name = run["training"], f"{run['run']}: {run['decay']}"
            steps = [each["step"] for each in training]
            weight.plot(steps, [_length(each["layers"], "weight") for each in training], label=name)
            rate.plot(steps, [_rate(each["layers"]) for each in training])
            share.plot(steps, [_share(each["layers"]) for each in training])
            sharpness.plot([each["sharpness"][self.overall] for each in run["snapshots"]], "o-")
        rate.set_yscale("log")
        for axes, title in (
            (weight, "‖w‖"),
            (rate, "effective rate ‖Δw‖ / ‖w‖"),
            (share, "share of L2 in Adam's first moment"),
        ):
            axes.set(title=title, xlabel="step")
        if all(math.isnan(float(y)) for line in share.lines for y in line.get_ydata()):
            share.text(0.5, 0.5, "no run has an L2 term", ha="center", transform=share.transAxes)
            share.set(xticks=[], yticks=[])
        sharpness.xaxis.get_major_locator().set_params(integer=True)
        sharpness.set(title="relative sharpness, nats per token", xlabel="snapshot")
        weight.legend(fontsize="x-small")

    def _overall(self, run: dict[str, Any]) -> Overall:
        training = run["training"]
        layers: list[Layers] = [each["layers"] for each in training]
        half = training[-1]["step"] / 2
        late = [_rate(each["layers"]) for each in training if each["step"] >= half]
        return Overall(
            first=_length(layers[0], "weight"),
            last=_length(layers[-1], "weight"),
            rate=_mean(late),
            l2_share=_mean([_share(each) for each in layers]),
            sharpness=run["snapshots"][-1]["sharpness"][self.overall],
            perplexity=run["lowest_ppl"],
        )


def _length(layers: Layers, what: str) -> float:
    """Returns the norm of all layers together, as if they were one vector."""
    return math.hypot(*(norms.get(what, math.nan) for norms in layers.values()))


def _or_infinite(perplexity: float) -> float:
    return math.inf if math.isnan(perplexity) else perplexity


def _rate(layers: Layers) -> float:
    return _length(layers, "update") / _length(layers, "weight")


def _share(layers: Layers) -> float:
    return _mean([norms["l2_share"] for norms in layers.values() if "l2_share" in norms])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
