"""What `norms` found, as data, table, sentence and picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Layers = Mapping[str, Mapping[str, float]]


class Overall(NamedTuple):
    """A run in a few numbers, over all of its layers.

    Attributes:
        first, last: length of all matrices, of the first and the last log.
        rate: mean effective rate over the second half of the run.
        l2_share: mean over layers and logs; NaN where decay is not an L2 term in Adam.
        sharpness: of the last snapshot.
        perplexity: the lowest.
    """

    first: float
    last: float
    rate: float
    l2_share: float
    sharpness: float
    perplexity: float


@dataclass(frozen=True, kw_only=True)
class NormsFinding:
    """What was logged and measured of each run.

    Attributes:
        runs: of each: `decay`; `lowest_ppl` of all validations; `training`, by validation with
            logs since the one before: `step`, `lr`, `token_ppl` and, by layer,
            the logs' means since the one before of `weight`, `update`, `effective_rate` and, with
            Adam, `l2_share`; `snapshots`: `sharpness` by layer, in nats per token.
        overall: the name under which `sharpness` is that of all layers at once.
    """

    runs: Sequence[dict[str, Any]]
    overall: str

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {"runs": [{**run, "overall": self._sum_up(run)._asdict()} for run in self.runs]}

    def rows(self) -> list[list[str]]:
        """A run a line."""
        heading = ["run", "decay", "‖w‖ first", "last", "rate", "L2", "sharp", "ppl"]
        return [heading, *(self._row(run) for run in self.runs)]

    def _row(self, run: dict[str, Any]) -> list[str]:
        found = self._sum_up(run)
        share = "" if math.isnan(found.l2_share) else f"{found.l2_share:.1%}"
        numbers = [f"{found.first:.4g}", f"{found.last:.4g}", f"{found.rate:.2e}", share]
        return [
            run["run"],
            run["decay"],
            *numbers,
            f"{found.sharpness:.3g}",
            f"{found.perplexity:.2f}",
        ]

    def reading(self) -> str:
        """Whose weights end smallest, and what came with that."""
        found = {run["run"]: self._sum_up(run) for run in self.runs}
        small = min(found, key=lambda name: found[name].last)
        large = max(found, key=lambda name: found[name].last)
        best = min(found, key=lambda name: _or_infinite(found[name].perplexity))
        if len(found) == 1:
            one = found[small]
            return (
                f"{small}: the weights went from length {one.first:.4g} to {one.last:.4g}, and a"
                f" late update moves them by {one.rate:.1e} of it."
            )
        shrunk = found[small].last / found[large].last
        faster = found[small].rate / found[large].rate
        return (
            f"{small} ends with the smallest weights, {shrunk:.2f} times as long as those of"
            f" {large}; late updates are {faster:.2f} times as large relative to them. The lowest"
            f" perplexity is that of {best}, {found[best].perplexity:.2f}."
        )

    def draw(self, figure: Any) -> None:
        """Weights, rates and L2's share over steps; sharpness over snapshots."""
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

    def _sum_up(self, run: dict[str, Any]) -> Overall:
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
    """Of all layers, as one vector."""
    return math.hypot(*(norms.get(what, math.nan) for norms in layers.values()))


def _or_infinite(perplexity: float) -> float:
    return math.inf if math.isnan(perplexity) else perplexity


def _rate(layers: Layers) -> float:
    return _length(layers, "update") / _length(layers, "weight")


def _share(layers: Layers) -> float:
    return _mean([norms["l2_share"] for norms in layers.values() if "l2_share" in norms])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
