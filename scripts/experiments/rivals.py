r"""Validation perplexity over minutes of training: sglm's recipes beside other people's code.

    python -m scripts.experiments.rivals add FILE --corpus NAME --system NAME \
        --microseconds 165 (--run RUN | --curve CURVE.jsonl)
    python -m scripts.experiments.rivals picture FILE rivals.png

FILE holds the curves (`docs/data/rivals.json`): perplexity over training tokens. A curve of sglm
comes from a run, one of other code from lines of JSON with `tokens` and `perplexity`, which that
code's own loop writes. The other code stays outside this repository. Minutes are tokens times the
microseconds per token, which are measured on a quiet machine, all systems in turn in one session.
So curves can be trained while the machine does other work, and evaluations do not count.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglm.storage.durable import replace_file, replace_text

MILESTONES = (5, 10, 20, 30)  # minutes
_LATE = 1.01  # an evaluation up to a hundredth after a milestone counts for it
_US_PER_MINUTE = 60e6
_TICKS = (50, 60, 70, 80, 90, 100, 120, 150, 200, 250, 300, 400)


@dataclass(frozen=True)
class Curve:
    """The curve of one system on one corpus.

    Attributes:
        minutes, perplexities: Minutes of training and the best perplexity so far, by evaluation.
    """

    system: str
    minutes: list[float]
    perplexities: list[float]

    def at(self, minutes: float) -> float | None:
        """Returns the best validation perplexity within `minutes`; None: no evaluation by then."""
        until = [
            perplexity
            for at, perplexity in zip(self.minutes, self.perplexities, strict=True)
            if at <= _LATE * minutes
        ]
        return until[-1] if until else None

    def when(self, perplexity: float) -> float | None:
        """Returns the minutes after which the perplexity is at most this; None: never."""
        return next(
            (m for m, p in zip(self.minutes, self.perplexities, strict=True) if p <= perplexity),
            None,
        )


def curve(system: str, entry: dict[str, Any]) -> Curve:
    """Makes the curve of an entry: `microseconds` per token, `points` of (tokens, perplexity)."""
    minutes: list[float] = []
    best: list[float] = []
    for tokens, perplexity in entry["points"]:
        minutes.append(tokens * entry["microseconds"] / _US_PER_MINUTE)
        best.append(min([perplexity, *best[-1:]]))
    return Curve(system, minutes, best)


def is_ours(system: str) -> bool:
    """Returns whether the system is sglm, by its name."""
    return "sglm" in system


def curves(corpora: dict[str, dict[str, Any]]) -> dict[str, list[Curve]]:
    """Returns all curves of the file, by corpus, those of sglm first."""
    return {
        corpus: [
            curve(system, entry)
            for system, entry in sorted(systems.items(), key=lambda item: not is_ours(item[0]))
        ]
        for corpus, systems in corpora.items()
    }


def table(corpora: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns the rows of a table, its head first.

    They hold the perplexity at each milestone and, for a rival, the minutes after which the first
    of sglm's curves is as low as the rival at the last milestone.
    """
    rows = [["corpus", "system", *(f"{m} min" for m in MILESTONES), "an sglm run is there after"]]
    for corpus, systems in curves(corpora).items():
        ours = [each for each in systems if is_ours(each.system)]
        for each in systems:
            values = [each.at(minutes) for minutes in MILESTONES]
            last, there = values[-1], None
            if each not in ours and last is not None:
                times = [own.when(last) for own in ours]
                there = min((time for time in times if time is not None), default=None)
            rows.append(
                [
                    corpus if each is systems[0] else "",
                    each.system,
                    *("" if value is None else f"{value:.1f}" for value in values),
                    "" if there is None else f"{there:.1f} min",
                ]
            )
    return rows


def points_of_run(run: Path) -> list[tuple[int, float]]:
    """Reads tokens and validation perplexities of a run of sglm from its `metrics.jsonl`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(each["tokens_seen"], each["token_ppl"]) for each in lines if each["split"] == "valid"]


def points_of_curve(path: Path) -> list[tuple[int, float]]:
    """Reads points from lines of JSON with `tokens` and `perplexity`."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(each["tokens"], each["perplexity"]) for each in lines]


def write(corpora: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes the file, one line per system, so that a diff shows which one changed."""
    blocks = [
        f"{json.dumps(corpus)}: {{\n"
        + ",\n".join(f" {json.dumps(name)}: {json.dumps(entry)}" for name, entry in systems.items())
        + "\n}"
        for corpus, systems in corpora.items()
    ]
    replace_text(path, "{" + ",\n".join(blocks) + "}\n")


def draw(corpora: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws a panel for each corpus: perplexity over minutes, without the high beginning."""
    from matplotlib.figure import Figure

    panels = curves(corpora)
    figure = Figure(figsize=(5.5 * len(panels), 4), layout="constrained")
    for axes, (corpus, systems) in zip(
        figure.subplots(1, len(panels), squeeze=False).flatten(), panels.items(), strict=True
    ):
        for each in systems:
            label = each.system.replace("`", "")  # the tables need them
            axes.plot(each.minutes, each.perplexities, marker=".", markersize=3, label=label)
        lowest = min(p for each in systems for p in each.perplexities)
        bottom, top = 0.95 * lowest, 3.5 * lowest
        axes.set_yscale("log")
        axes.set_ylim(bottom, top)
        ticks = [tick for tick in _TICKS if bottom < tick < top]
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0, MILESTONES[-1])
        axes.set_xlabel("minutes of training, two cores")
        axes.set_ylabel("validation perplexity")
        axes.set_title(corpus, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    replace_file(path, lambda aside: figure.savefig(aside, format="png", dpi=110))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.rivals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="Put a curve into the file.")
    add.add_argument("file", type=Path)
    add.add_argument("--corpus", required=True)
    add.add_argument("--system", required=True)
    add.add_argument("--microseconds", type=float, required=True, help="Per token, quiet machine.")
    source = add.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path)
    source.add_argument("--curve", type=Path)
    picture = commands.add_parser("picture", help="Draw the file.")
    picture.add_argument("file", type=Path)
    picture.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    corpora = json.loads(arguments.file.read_text()) if arguments.file.exists() else {}
    if arguments.command == "picture":
        draw(corpora, arguments.picture)
        return
    points = points_of_run(arguments.run) if arguments.run else points_of_curve(arguments.curve)
    if not points:
        parser.error(f"{arguments.run or arguments.curve}: no evaluation in it")
    corpora.setdefault(arguments.corpus, {})[arguments.system] = {
        "microseconds": arguments.microseconds,
        "points": [[tokens, round(perplexity, 2)] for tokens, perplexity in points],
    }
    write(corpora, arguments.file)


if __name__ == "__main__":
    main()
