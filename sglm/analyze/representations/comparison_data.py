"""The data of the comparison of representations, and the groups of pairs and runs in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from sglm.scoring.metrics import perplexity


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of pairs of runs that differ in the same way.

    Attributes:
        labels: Labels of the two runs.
        same_seed: Whether the runs of a pair have the same seed, and so (if of the same shape) the
            same initial weights.
        pairs: Number of pairs.
        means: Means over the pairs: KL, agreement, the ratio of perplexities, and by layer CKA and
            the correlation of the dissimilarity matrices.
        spread: Standard deviations of the same; NaN for a single pair or if a value is not finite.
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
        """Whether the runs of a pair differ in nothing but the seed."""
        return self.labels[0] == self.labels[1] and not self.same_seed

    @property
    def is_across(self) -> bool:
        """Whether the configurations and the seeds differ, but not the cycle of the training.

        Runs with the same seed start from the same weights, so they cannot be compared with the
        yardsticks.
        """
        one, other = (label.split(" #")[0].partition(" @") for label in self.labels)
        return self.labels[0] != self.labels[1] and not self.same_seed and one[2] == other[2]


@dataclass(frozen=True, kw_only=True)
class ComparisonData:
    """The data of `sglm.analyze.representations`.

    Attributes:
        positions: Number of positions in the sample.
        models: Measures by run: label, seed, nats, CKA among its own layers, dissimilarities
            between the next token's classes, probes, top directions.
        pairs: Measures of every two runs: KL, agreement, CKA of every two layers, correlation of
            the dissimilarity matrices of every layer.
        fields: Measures by run with a synthesizer: whether its field is a gradient, and which loss
            it implies; None if the run's checkpoint is missing.
    """

    positions: int
    models: Mapping[str, Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    fields: Mapping[str, Mapping[str, Any] | None]

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of pairs, the yardsticks first."""
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
        """The labels, in the order in which the runs were given."""
        return list(dict.fromkeys(model["label"] for model in self.models.values()))

    def of_label(self, label: str) -> list[Mapping[str, Any]]:
        """Returns the measures of the runs with this label, which differ only in their seeds."""
        return [model for model in self.models.values() if model["label"] == label]

    @cached_property
    def fields_by_label(self) -> dict[str, list[Mapping[str, Any]]]:
        """The measures of the synthesizers' fields, by the runs' label."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for name, field in self.fields.items():
            if field is not None:
                found.setdefault(self.models[name]["label"], []).append(field)
        return found


def fold(trees: Sequence[Any], number: Any) -> Any:
    """Combines trees of the same form into one.

    Args:
        trees: Mappings and lists of numbers, nested alike.
        number: Function that combines the numbers at one place. A name that a tree lacks is left
            out.
    """
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
