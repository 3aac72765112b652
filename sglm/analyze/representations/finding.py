"""The finding of the comparison of representations: data, table, sentences and picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from sglm.analyze.representations.comparison_data import ComparisonData, Group, fold
from sglm.analyze.representations.picture import draw_representations

# The table has means over all layers of one kind, so that it always fits 80 columns.
KINDS = ("embedding", "cell", "hidden", "logits")
_HEADS = ("embed.", *KINDS[1:])


class RepresentationsFinding(ComparisonData):
    """The finding of `sglm.analyze.representations` (a `Finding`)."""

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
                scores = fold([model["probes"][question] for model in models], fmean)
                rows.append(
                    [
                        f"{question}: {label}",
                        "",
                        str(len(models)),
                        f"{scores['chance']:.2f}",
                        *(f"{value:.2f}" for value in by_kind(scores)),
                    ]
                )
            top = fold([model["top_direction"] for model in models], fmean)
            for number in ("share", "persistence"):
                values = by_kind({name: each[number] for name, each in top.items()})
                start = [f"{number}: {label}", "", str(len(models)), ""]
                rows.append([*start, *(f"{value:.2f}" for value in values)])
        return rows

    def _field_rows(self) -> list[list[str]]:
        rows = [["implied loss of", "", "runs", "curl", "corr.", "slope", "expl."]]
        for label, measured in self.fields_by_label.items():
            mean = fold(measured, fmean)
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

    def summary(self) -> str:
        without = [name for name, field in self.fields.items() if field is None]
        lost = f"No checkpoint, and so no synthesizer, is left of {', '.join(without)}."
        sentences = (self._summary_of_pairs(), self._summary_of_fields(), lost if without else "")
        return " ".join(filter(None, sentences))

    def _summary_of_pairs(self) -> str:
        known = {each.labels[0] for each in self.groups if each.is_yardstick}
        across = [
            each for each in self.groups if each.is_across and known.intersection(each.labels)
        ]
        of_modes = [each for each in across if _differ_in_mode(each)]
        across, differ = (
            (of_modes, "modes or synthesizers") if of_modes else (across, "configurations")
        )
        compared = {label for each in across for label in each.labels}
        yardsticks = [g for g in self.groups if g.is_yardstick and g.labels[0] in compared]
        if not across or not _pooled(yardsticks, "kl_nats"):
            return (
                "Whether layers differ more than predictions do can be judged only against runs of"
                " one mode with different seeds: give runs of two modes with two seeds each."
            )
        kl = _pooled(across, "kl_nats") / _pooled(yardsticks, "kl_nats")
        apart = [
            f"{name}: {_distance(across, 'cka', name) / _distance(yardsticks, 'cka', name):.2f}"
            f" ({_distance(across, 'rdm', name) / _distance(yardsticks, 'rdm', name):.2f})"
            for name in _common_layers([*across, *yardsticks])
        ]
        return (
            f"Compared with runs that differ only in their seeds, runs of different {differ} (and"
            f" seeds) are {kl:.2f} times as far apart in what they predict (KL). The same ratio for"
            " their layers, by 1 − CKA (in brackets by 1 − the correlation of dissimilarities):"
            f" {', '.join(apart)}."
        )

    def _summary_of_fields(self) -> str:
        parts = []
        for label, measured in self.fields_by_label.items():
            mean = fold(measured, fmean)
            if not any(any(field["implied_nats"]) for field in measured):
                parts.append(f"{label}: predicts nothing")
                continue
            is_known = not math.isnan(mean["rotation"])
            rotation = f"{mean['rotation']:.1%} rotation" if is_known else "rotation undefined"
            parts.append(f"{label}: {rotation}, {mean['explained']:.0%} explained")
        if not parts:
            return ""
        return (
            "The rotation of the synthetic gradients (the share of their Jacobian that the gradient"
            " of a loss cannot have), and the share of the true loss differences between two states"
            f" that the implied loss explains: {'; '.join(parts)}."
        )

    def draw(self, figure: Any) -> None:
        draw_representations(figure, self)


def by_kind(of_layers: Mapping[str, float]) -> list[float]:
    """Returns the mean over the layers of each of `KINDS`."""
    return [
        fmean(value for name, value in of_layers.items() if name.split(" ")[0] == kind)
        for kind in KINDS
    ]


def _differ_in_mode(group: Group) -> bool:
    return len({label.partition(" ")[0] for label in group.labels}) > 1


def _pooled(groups: Iterable[Group], name: str) -> float:
    """Returns the mean of a measure over all pairs of the groups."""
    pairs = [(float(group.means[name]), group.pairs) for group in groups]
    return sum(mean * count for mean, count in pairs) / sum(count for _, count in pairs)


def _distance(groups: Sequence[Group], measure: str, layer: str) -> float:
    count = sum(group.pairs for group in groups)
    alike = sum(float(group.means[measure][layer]) * group.pairs for group in groups)
    return 1 - alike / count


def _common_layers(groups: Sequence[Group]) -> list[str]:
    names = list(groups[0].means["cka"])
    return [name for name in names if all(name in group.means["cka"] for group in groups)]
