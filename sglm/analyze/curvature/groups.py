"""One weight matrix of several models: what is measured of each, and of every two of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sglm.analyze.curvature.comparison import compare, pairs_of
from sglm.analyze.curvature.subspaces import random_rank_one_share
from sglm.storage.names import CYCLE


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One weight matrix of one model.

    Attributes:
        subject: the model.
        cycle: whose end it is; None: the run's best model.
        seed, mode: of the run.
        weight: for tables.
        values: what `WeightMeasurer.measure` found.
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
    measured: Sequence[Measured]

    @property
    def name(self) -> str:
        """For tables."""
        if self.cycle is None:
            return self.weight
        return f"{self.weight}, {self.cycle.removeprefix(CYCLE)}"

    @cached_property
    def compared(self) -> list[dict[str, Any]]:
        """See `compare`."""
        seeds = {each.subject: each.seed for each in self.measured}
        kept = {each.subject: each.values["kept"] for each in self.measured}
        return compare(kept, pairs_of(seeds))

    def mean(self, number: Callable[[dict[str, Any]], float]) -> float:
        """Over the models."""
        return _mean([number(each.values) for each in self.measured])

    def between(self, kind: str, *, same_seed: bool) -> float:
        """The mean overlap of two models' top eigenspaces; NaN where there are no two such."""
        return _mean([each[kind][-1] for each in self.compared if each["same_seed"] == same_seed])

    @cached_property
    def observed(self) -> dict[str, float]:
        """By the observation's name."""
        return {
            "hessian_gauss_newton": self.mean(lambda v: v["hessian_gauss_newton"][-1]),
            "rank_one": self.mean(lambda v: _mean(v["gauss_newton"]["rank_one"])),
            "expand": self.mean(lambda v: v["expand"]["gauss_newton"][-1]),
            "reduce": self.mean(lambda v: v["reduce"]["gauss_newton"][-1]),
            "mean_share": self.mean(lambda v: v["inputs"]["mean_share"]),
            "along_mean": self.mean(lambda v: _mean(v["gauss_newton"]["along_mean"])),
            "same_seed": self.between("gauss_newton", same_seed=True),
            "other_seed": self.between("gauss_newton", same_seed=False),
        }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def chance(group: Group) -> dict[str, float]:
    """What unrelated spaces and random vectors would have: `overlap` and `rank_one`."""
    rows, columns = group.measured[0].values["shape"]
    count = len(group.measured[0].values["gauss_newton"]["values"])
    return {
        "overlap": count / (rows * columns),
        "rank_one": random_rank_one_share((rows, columns)),
    }
