"""What the comparison of representations found: data, table, sentence and picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from sglm.analyze.representation.picture import draw_representations

# Layers of one kind are averaged in the table, so that it fits 80 columns whatever their number.
KINDS = ("embedding", "cell", "hidden", "logits")
_HEADS = ("embed.", *KINDS[1:])


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
        """Whether nothing but the seed differs."""
        return self.labels[0] == self.labels[1]


@dataclass(frozen=True, kw_only=True)
class RepresentationsFinding:
    """See `sglm.analyze.representations`.

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
                    "ppl_ratio": math.exp(abs(one["nats"] - other["nats"])),
                    "cka": {name: row[name] for name, row in pair["cka"].items() if name in row},
                    "rdm": pair["rdm"],
                }
            )
        groups = [
            Group(
                labels=(one, other),
                same_seed=same,
                pairs=len(each),
                means=_fold(each, fmean),
                spread=_fold(each, _deviation),
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

    def as_json(self) -> dict[str, Any]:
        return {
            "positions": self.positions,
            "models": self.models,
            "pairs": self.pairs,
            "groups": [
                {
                    "labels": group.labels,
                    "same_seed": group.same_seed,
                    "pairs": group.pairs,
                    "mean": group.means,
                    "standard_deviation": group.spread,
                }
                for group in self.groups
            ],
            "fields": self.fields,
        }

    def rows(self) -> list[list[str]]:
        tables = [self._pair_rows(), self._probe_rows(), self._field_rows()]
        rows: list[list[str]] = []
        for table in tables:
            if len(table) > 1:
                rows += [*([[""]] if rows else []), *table]
        width = max(map(len, rows))
        return [[*row, *[""] * (width - len(row))] for row in rows]

    def _pair_rows(self) -> list[list[str]]:
        rows = [["CKA of two runs", "seed", "pairs", "KL", *_HEADS]]
        for group in self.groups:
            rows.append(
                [
                    " – ".join(group.labels),
                    group.seed,
                    str(group.pairs),
                    f"{group.means['kl_nats']:.3f}",
                    *(f"{value:.2f}" for value in by_kind(group.means["cka"])),
                ]
            )
        return rows

    def _probe_rows(self) -> list[list[str]]:
        rows = [["probes; top direction", "", "runs", "chance", *_HEADS]]
        for label in self.labels:
            models = self.of_label(label)
            for question in models[0]["probes"]:
                scores = _fold([model["probes"][question] for model in models], fmean)
                rows.append(
                    [
                        f"{question}: {label}",
                        "",
                        str(len(models)),
                        f"{scores['chance']:.2f}",
                        *(f"{value:.2f}" for value in by_kind(scores)),
                    ]
                )
            top = _fold([model["top_direction"] for model in models], fmean)
            for number in ("share", "persistence"):
                values = by_kind({name: each[number] for name, each in top.items()})
                start = [f"{number}: {label}", "", str(len(models)), ""]
                rows.append([*start, *(f"{value:.2f}" for value in values)])
        return rows

    def _field_rows(self) -> list[list[str]]:
        rows = [["implied loss of", "", "runs", "curl", "corr.", "slope", "expl."]]
        for label, measured in self.fields_by_label.items():
            mean = _fold(measured, fmean)
            rows.append(
                [
                    label,
                    "",
                    str(len(measured)),
                    f"{mean['rotation']:.3f}",
                    *(f"{mean[name]:.2f}" for name in ("correlation", "slope", "explained")),
                ]
            )
        return rows

    @cached_property
    def fields_by_label(self) -> dict[str, list[Mapping[str, Any]]]:
        """What was measured of them."""
        found: dict[str, list[Mapping[str, Any]]] = {}
        for name, field in self.fields.items():
            if field is not None:
                found.setdefault(self.models[name]["label"], []).append(field)
        return found

    def reading(self) -> str:
        without = [name for name, field in self.fields.items() if field is None]
        lost = f"No checkpoint, and so no synthesizer, is left of {', '.join(without)}."
        sentences = (self._reading_of_pairs(), self._reading_of_fields(), lost if without else "")
        return " ".join(filter(None, sentences))

    def _reading_of_pairs(self) -> str:
        yardsticks = [each for each in self.groups if each.is_yardstick]
        # Runs of one seed begin with the same weights, so only those of others are comparable.
        across = [each for each in self.groups if not each.is_yardstick and not each.same_seed]
        if not across or not yardsticks:
            return (
                "Whether layers differ more than the function does is seen against two seeds of one"
                " mode: give runs of two modes with two seeds each."
            )
        kl = _pooled(across, "kl_nats") / _pooled(yardsticks, "kl_nats")
        apart = [
            f"{name} {_distance(across, 'cka', name) / _distance(yardsticks, 'cka', name):.2f}"
            f" ({_distance(across, 'rdm', name) / _distance(yardsticks, 'rdm', name):.2f})"
            for name in _common_layers([*across, *yardsticks])
        ]
        return (
            "Compared with two seeds of one mode, runs of different modes (and seeds) are"
            f" {kl:.2f} times as far apart in what they predict (KL), and in their layers"
            f" by 1 − CKA (by 1 − the correlation of dissimilarities): {', '.join(apart)}."
        )

    def _reading_of_fields(self) -> str:
        parts = []
        for label, measured in self.fields_by_label.items():
            mean = _fold(measured, fmean)
            if math.isnan(mean["rotation"]):
                parts.append(f"{label}: predicts nothing")
            else:
                parts.append(
                    f"{label}: {mean['rotation']:.1%} rotation, {mean['explained']:.0%} explained"
                )
        if not parts:
            return ""
        return (
            "Of the Jacobian of the synthetic gradients, the share that no loss has, and of the"
            f" true loss between two states, the share that they imply: {'; '.join(parts)}."
        )

    def draw(self, figure: Any) -> None:
        draw_representations(figure, self)


def by_kind(of_layers: Mapping[str, float]) -> list[float]:
    """The mean over the layers of each of `KINDS`."""
    return [
        fmean(value for name, value in of_layers.items() if name.split(" ")[0] == kind)
        for kind in KINDS
    ]


def _fold(trees: Sequence[Any], number: Any) -> Any:
    """One tree of the same form, with a number made of all numbers at each place; where a tree
    lacks a place, it is left out."""
    if isinstance(trees[0], Mapping):
        names = [name for name in trees[0] if all(name in tree for tree in trees)]
        return {name: _fold([tree[name] for tree in trees], number) for name in names}
    if isinstance(trees[0], list):
        return [_fold(list(each), number) for each in zip(*trees, strict=True)]
    return number(trees)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan


def _pooled(groups: Iterable[Group], name: str) -> float:
    """The mean over all their pairs."""
    pairs = [(float(group.means[name]), group.pairs) for group in groups]
    return sum(mean * count for mean, count in pairs) / sum(count for _, count in pairs)


def _distance(groups: Sequence[Group], measure: str, layer: str) -> float:
    count = sum(group.pairs for group in groups)
    alike = sum(float(group.means[measure][layer]) * group.pairs for group in groups)
    return 1 - alike / count


def _common_layers(groups: Sequence[Group]) -> list[str]:
    names = list(groups[0].means["cka"])
    return [name for name in names if all(name in group.means["cka"] for group in groups)]
