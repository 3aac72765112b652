"""One weight matrix of several models: its values in each model and in each pair of models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sglm.analyze.curvature.comparison import compare, pairs_of
from sglm.analyze.curvature.subspaces import random_rank_one_share
from sglm.storage.names import CYCLE


@dataclass(frozen=True, kw_only=True)
class MatrixMeasurement:
    """The values measured for one weight matrix of one model.

    Attributes:
        subject: The model's name.
        cycle: The cycle at whose end the snapshot was taken. None: the run's best model.
        seed, mode: The run's `train.seed` and `schedule.mode`.
        weight: The matrix's short name, for tables.
        values: The result of `WeightMeasurer.measure`.
    """

    subject: str
    cycle: str | None
    seed: int
    mode: str
    weight: str
    values: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Group:
    """One weight matrix of all models, or of all models at the end of one cycle."""

    weight: str
    cycle: str | None
    measurements: Sequence[MatrixMeasurement]

    @property
    def name(self) -> str:
        """The name for tables: the matrix and, for snapshots, the cycle's number."""
        if self.cycle is None:
            return self.weight
        return f"{self.weight}, {self.cycle.removeprefix(CYCLE)}"

    @cached_property
    def pair_overlaps(self) -> list[dict[str, Any]]:
        """The overlaps of each pair of models, as `compare` returns them."""
        seeds = {each.subject: each.seed for each in self.measurements}
        kept = {each.subject: each.values["kept"] for each in self.measurements}
        return compare(kept, pairs_of(seeds))

    def mean(self, number: Callable[[dict[str, Any]], float]) -> float:
        """Returns the mean over the models of a number computed from `values`."""
        return _mean([number(each.values) for each in self.measurements])

    def mean_overlap(self, kind: str, *, same_seed: bool) -> float:
        """Returns the mean overlap of two models' top eigenspaces.

        Args:
            kind: "hessian" or "gauss_newton".
            same_seed: Whether to average over pairs with the same seed or with different seeds.

        Returns:
            The mean, or NaN if there are no such pairs.
        """
        return _mean(
            [each[kind][-1] for each in self.pair_overlaps if each["same_seed"] == same_seed]
        )

    @cached_property
    def observed(self) -> dict[str, float]:
        """The value of each observation of `OBSERVATIONS`, by its name."""
        return {
            "hessian_gauss_newton": self.mean(lambda v: v["hessian_gauss_newton"][-1]),
            "rank_one": self.mean(lambda v: _mean(v["gauss_newton"]["rank_one"])),
            "expand": self.mean(lambda v: v["expand"]["gauss_newton"][-1]),
            "reduce": self.mean(lambda v: v["reduce"]["gauss_newton"][-1]),
            "mean_share": self.mean(lambda v: v["inputs"]["mean_share"]),
            "along_mean": self.mean(lambda v: _mean(v["gauss_newton"]["along_mean"])),
            "same_seed": self.mean_overlap("gauss_newton", same_seed=True),
            "other_seed": self.mean_overlap("gauss_newton", same_seed=False),
        }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def chance(group: Group) -> dict[str, float]:
    """Returns the `overlap` of unrelated spaces and the `rank_one` share of random vectors."""
    rows, columns = group.measurements[0].values["shape"]
    count = len(group.measurements[0].values["gauss_newton"]["values"])
    return {
        "overlap": count / (rows * columns),
        "rank_one": random_rank_one_share((rows, columns)),
    }
