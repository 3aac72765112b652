"""The finding of `sglm analyze curvature`, as JSON, table, sentence and picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sglm.analyze.curvature.groups import Group, MatrixMeasurement
from sglm.analyze.curvature.picture import draw

# An overlap or share of at least this value, that is most of the space or vector, counts as
# agreement with Wu et al. (2020), who name no number.
MOST = 0.5


@dataclass(frozen=True, kw_only=True)
class Observation:
    """An observation of Wu et al. on feed-forward nets, measured as a number between 0 and 1.

    Attributes:
        name: The key in JSON.
        head: The column's heading in tables.
        claim: The observation as a clause of a sentence.
    """

    name: str
    head: str
    claim: str


OBSERVATIONS = (
    Observation(
        name="hessian_gauss_newton",
        head="H~GN",
        claim="Hessian and Gauss-Newton share their top eigenspace",
    ),
    Observation(
        name="rank_one", head="rank1", claim="top eigenvectors are close to outer products"
    ),
    Observation(
        name="expand",
        head="exp",
        claim="Kronecker factors reproduce the top eigenspace (expand)",
    ),
    Observation(
        name="reduce",
        head="red",
        claim="Kronecker factors reproduce the top eigenspace (reduce)",
    ),
    Observation(
        name="mean_share", head="mean", claim="the inputs' autocorrelation is mostly their mean"
    ),
    Observation(name="along_mean", head="along", claim="top eigenvectors lie along the mean input"),
    Observation(
        name="same_seed", head="seed=", claim="models of one seed share their top eigenspace"
    ),
    Observation(
        name="other_seed",
        head="seed≠",
        claim="models of different seeds share their top eigenspace",
    ),
)


@dataclass(frozen=True, kw_only=True)
class CurvatureFinding:
    """The finding of the curvature analysis.

    Attributes:
        measurements: The values of each weight matrix of each model.
        windows, steps: The number N of windows and the number T of steps in each.
    """

    measurements: Sequence[MatrixMeasurement]
    windows: int
    steps: int

    @cached_property
    def groups(self) -> list[Group]:
        """The measured matrices, grouped by weight matrix and cycle."""
        keys = dict.fromkeys((each.weight, each.cycle) for each in self.measurements)
        return [
            Group(
                weight=weight,
                cycle=cycle,
                measurements=[
                    e for e in self.measurements if (e.weight, e.cycle) == (weight, cycle)
                ],
            )
            for weight, cycle in keys
        ]

    def as_json(self) -> dict[str, Any]:
        """See `Finding`."""
        return {
            "windows": self.windows,
            "steps": self.steps,
            "models": [
                {"model": each.subject, "seed": each.seed, "mode": each.mode}
                | {"weight": each.weight}
                | {name: value for name, value in each.values.items() if name != "kept"}
                for each in self.measurements
            ],
            "groups": [
                {
                    "weight": group.weight,
                    "cycle": group.cycle,
                    "observed": group.observed,
                    "agrees": {
                        name: None if np.isnan(value) else value >= MOST
                        for name, value in group.observed.items()
                    },
                    "pairs": group.pair_overlaps,
                }
                for group in self.groups
            ],
        }

    def rows(self) -> list[list[str]]:
        """See `Finding`: means over the models; `+`: agrees with Wu et al., `-`: does not."""
        heads = ["", "λ1", *(each.head for each in OBSERVATIONS)]
        return [heads, *(self._row(group) for group in self.groups)]

    def _row(self, group: Group) -> list[str]:
        first = group.mean(lambda values: values["gauss_newton"]["values"][0])
        observed = [_verdict(group.observed[each.name]) for each in OBSERVATIONS]
        return [group.name, f"{first:.1e}", *observed]

    def summary(self) -> str:
        """See `Finding`."""
        parts = []
        for word, wanted in (("hold in every", True), ("hold in no", False)):
            claims = [each.claim for each in OBSERVATIONS if self._agrees(each) is wanted]
            if claims:
                parts.append(f"{word} matrix: {'; '.join(claims)}")
        mixed = [each.claim for each in OBSERVATIONS if self._agrees(each) == "mixed"]
        if mixed:
            parts.append(f"hold in some matrices: {'; '.join(mixed)}")
        return f"Of the observations of Wu et al. (2020), these {'. These '.join(parts)}."

    def _agrees(self, observation: Observation) -> bool | str | None:
        """Returns whether it holds: True in all groups, False in none, "mixed" in some.

        None if no group has a value for it.
        """
        values = [group.observed[observation.name] for group in self.groups]
        known = {value >= MOST for value in values if not np.isnan(value)}
        return None if not known else known.pop() if len(known) == 1 else "mixed"

    def draw(self, figure: Any) -> None:
        """See `Finding`; if the models are snapshots, only those of the last cycle are drawn."""
        last = max((group.cycle or "" for group in self.groups), default="")
        after = f" ({last})" if last else ""
        title = (
            f"Curvature of the loss of {self.windows * self.steps:,} training tokens,"
            f" windows of {self.steps}{after}"
        )
        draw([group for group in self.groups if (group.cycle or "") == last], figure, title=title)


def _verdict(value: float) -> str:
    return "·" if np.isnan(value) else f"{value:.2f}{'+' if value >= MOST else '-'}"
