"""The data of the comparison of representations, and how pairs and runs are grouped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from sglm.scoring.metrics import perplexity


@dataclass(frozen=True, kw_only=True)
class Group:
    """Pairs of runs that differ in the same way.

    Attributes:
        labels: of both runs.
        same_seed: whether both began with the same weights and read the same order.
        pairs: how many.
        means: over them, of KL, agreement, the ratio of perplexities, and CKA and the dissimilarity
            matrices' correlation by layer.
        spread: standard deviations; NaN of one pair.
    """

    labels: tuple[str, str]
    same_seed: bool
    pairs: int
    means: Mapping[str, Any]
    spread: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{' – '.join(self.labels)}, {self.seed} seed"

    @property
    def seed(self) -> str:
        return "same" if self.same_seed else "other"

    @property
    def is_yardstick(self) -> bool:
        """Whether the seed differs and nothing else."""
        return self.labels[0] == self.labels[1] and not self.same_seed

    @property
    def is_across(self) -> bool:
        """Whether the configuration differs and not how far the training was. Runs of one seed
        begin with the same weights, so only those of others are comparable."""
        one, other = (label.split(" #")[0].partition(" @") for label in self.labels)
        return self.labels[0] != self.labels[1] and not self.same_seed and one[2] == other[2]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The data of `sglm.analyze.representations`.

    Attributes:
        positions: at which layers and predictions were compared.
        models: by run: label, seed, nats, CKA among its own layers, dissimilarities of the next
            token's classes, probes.
        pairs: of two runs each: KL, agreement, CKA of every two layers, correlation of the
            dissimilarity matrices of every layer.
        fields: by run with a synthesizer: whether its field is a gradient, and what loss it
            implies; None where its checkpoint is gone.
    """

    positions: int
    models: Mapping[str, Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    fields: Mapping[str, Mapping[str, Any] | None]

    @cached_property
    def groups(self) -> list[Group]:
        """The yardsticks first."""
        members: dict[tuple[str, str, bool], list[dict[str, Any]]] = {}
        for pair in self.pairs:
            one, other = (self.models[name] for name in pair["runs"])
            labels = sorted((one["label"], other["label"]), key=self._order)
            key = (labels[0], labels[1], one["seed"] == other["seed"])
            members.setdefault(key, []).append(
                {
                    "kl_nats": pair["kl_nats"],
                    "agreement": pair["agreement"],
                    "ppl_ratio": perplexity(abs(one["nats"] - other["nats"]), 1),
                    "cka": {name: row[name] for name, row in pair["cka"].items() if name in row},
                    "rdm": pair["rdm"],
                }
            )
        groups = [
            Group(
                labels=(one, other),
                same_seed=same,
                pairs=len(each),
                means=fold(each, fmean),
                spread=fold(each, _deviation),
            )
            for (one, other, same), each in members.items()
        ]
        return sorted(groups, key=lambda each: (not each.is_yardstick, not each.same_seed))

    def _order(self, label: str) -> int:
        return self.labels.index(label)

    @cached_property
    def labels(self) -> list[str]:
        """In the order in which the runs were given."""
        return list(dict.fromkeys(model["label"] for model in self.models.values()))

    def of_label(self, label: str) -> list[Mapping[str, Any]]:
        """The runs that differ in their seeds only."""
        return [model for model in self.models.values() if model["label"] == label]

    @cached_property
    def fields_by_label(self) -> dict[str, list[Mapping[str, Any]]]:
        """What was measured of them."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for name, field in self.fields.items():
            if field is not None:
                found.setdefault(self.models[name]["label"], []).append(field)
        return found


def fold(trees: Sequence[Any], number: Any) -> Any:
    """One tree of the same form, with a number made of all numbers at each place; where a tree
    lacks a place, it is left out."""
    if isinstance(trees[0], Mapping):
        names = [name for name in trees[0] if all(name in tree for tree in trees)]
        return {name: fold([tree[name] for tree in trees], number) for name in names}
    if isinstance(trees[0], list):
        return [fold(list(each), number) for each in zip(*trees, strict=True)]
    return number(trees)


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    return stdev(values)
