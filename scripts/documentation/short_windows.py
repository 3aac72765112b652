"""The table of short windows: turns perplexities and times into differences and shares of the gap.

A corpus is a file of `docs/data/short-windows/`, in the form of `frontier.json` (see
`scripts.experiments.frontier`): `title`, `perplexities` by point and seed, `times` by point.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.documentation.pages import markdown
from scripts.experiments.frontier import BASELINE, CEILING, POINTS, shares
from sglm.compare.statistics import Difference, paired_difference
from sglm.errors import InputError

FOLDER = "data/short-windows"
_MINUS = "−"
HEAD = [
    "corpus",
    "point",
    "perplexity, seed by seed",
    "difference from `bptt` (95 % CI)",
    "gap closed",
    "time",
]

Perplexities = dict[str, dict[int, float]]


def read(path: Path) -> dict[str, Any]:
    """Reads a corpus's file, with seeds as numbers.

    Raises:
        InputError: The file does not exist, or lacks one of the two ends of the gap.
    """
    try:
        corpus: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; python -m scripts.documentation.add makes it") from None
    corpus["perplexities"] = {
        point: {int(seed): ppl for seed, ppl in of_seed.items()}
        for point, of_seed in corpus["perplexities"].items()
    }
    if missing := {BASELINE, CEILING} - corpus["perplexities"].keys():
        raise InputError(f"{path} has no {missing.pop()!r}, one of the two ends of the gap")
    return corpus


def table(names: list[str], docs: Path) -> str:
    """Returns the rows of the named corpora, one below the other.

    A `:` after the corpora begins a list of the points to show, separated by `;`; default: all.
    """
    corpora, _, wanted = " ".join(names).partition(" : ")
    shown = {point.strip() for point in wanted.split(";")} if wanted else None
    rows = [HEAD]
    for name in corpora.split():
        corpus = read(docs / FOLDER / f"{name}.json")
        own = [
            row
            for row in corpus_rows(corpus["perplexities"], corpus["times"])
            if shown is None or row[0].strip("`") in shown
        ]
        rows += [[corpus["title"] if index == 0 else "", *row] for index, row in enumerate(own)]
    return markdown(rows)


def corpus_rows(perplexities: Perplexities, times: Mapping[str, Any]) -> list[list[str]]:
    """Returns a row for each point: those of `frontier` in its order, then the others."""
    decimals = 2 if statistics.mean(perplexities[BASELINE].values()) >= 10 else 3
    known = [point for point in POINTS if point in perplexities]
    of_gap = shares(perplexities, CEILING)
    rows = []
    for point in [*known, *(point for point in perplexities if point not in POINTS)]:
        of_seed = dict(sorted(perplexities[point].items()))
        difference = paired_difference(of_seed, perplexities[BASELINE])
        base = point == BASELINE
        rows.append(
            [
                f"`{point}`",
                _seeds(of_seed, decimals),
                "" if base or difference is None else _difference(difference, decimals),
                "" if base else _percent(statistics.mean(of_gap[point])),
                f"{times[point]['ratio']:.2f}" if point in times else "",
            ]
        )
    return rows


def _seeds(of_seed: Mapping[int, float], decimals: int) -> str:
    """Returns the perplexities, with the seeds unless they are 0, 1, … in order."""
    values = ", ".join(f"{ppl:.{decimals}f}" for ppl in of_seed.values())
    if list(of_seed) == list(range(len(of_seed))):
        return values
    return f"{values} (seed {', '.join(map(str, of_seed))})"


def _percent(share: float) -> str:
    return f"{round(100 * share)} %".replace("-", _MINUS)  # rounded first: no −0


def _difference(difference: Difference, decimals: int) -> str:
    """Returns a difference, in bold type if its interval excludes zero."""
    mean = _signed(difference.mean, decimals)
    if difference.ci95 is None:
        return f"{mean} (one seed)"
    low, high = difference.ci95
    mean = f"**{mean}**" if low > 0 or high < 0 else mean
    return f"{mean} ({_signed(low, decimals)} … {_signed(high, decimals)})"


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", _MINUS)
