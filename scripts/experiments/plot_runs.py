r"""Draws runs side by side: validation perplexity over minutes, with learning rate and mode above.

    python -m scripts.experiments.plot_runs docs/ptb-small.png plain=runs/ptb-plain \
        alternating=runs/ptb-alt

Needs the extra `plots` (matplotlib). The curves are read from each run's `metrics.jsonl`, the
schedule from its `config.toml`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sglm.config import load_config
from sglm.optim.schedule import Mode
from sglm.train.build import build_schedule

SYNTHETIC_COLOUR = "#f2c14e"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.plot_runs", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--title", default="")
    parser.add_argument("--reference", nargs="*", default=[], metavar="MINUTES:PERPLEXITY")
    parser.add_argument("--reference-name", default="reference")
    parser.add_argument("--highest", type=float, help="Top of the perplexity axis.")
    arguments = parser.parse_args()

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 5.5), height_ratios=(1, 3), layout="constrained"
    )
    for entry in arguments.runs:
        name, _, folder = entry.partition("=")
        metrics = read_metrics(Path(folder))
        minutes = [line["seconds"] / 60 for line in metrics]
        bottom.plot(minutes, [line["token_ppl"] for line in metrics], marker="o", label=name)
    if arguments.reference:
        points = [tuple(map(float, point.split(":"))) for point in arguments.reference]
        style = {"color": "grey", "linestyle": "--", "marker": "x"}
        bottom.plot(*zip(*points, strict=True), label=arguments.reference_name, **style)
    draw_schedule(top, Path(arguments.runs[-1].partition("=")[2]))
    bottom.set_xlabel("minutes, evaluation included")
    bottom.set_ylabel("validation perplexity")
    bottom.set_ylim(top=arguments.highest)
    bottom.grid(alpha=0.3)
    bottom.legend()
    figure.suptitle(arguments.title)
    figure.savefig(arguments.picture, dpi=120)


def draw_schedule(axes: Any, run: Path) -> None:
    """Draws the learning rate over the steps, with synthetic cycles shaded."""
    last = read_metrics(run)[-1]
    config = load_config(str(run / "config.toml"))
    epochs = sum(config.schedule.cycle_lengths())
    per_epoch = round(last["step"] / epochs) if config.schedule.unit == "epochs" else 1
    schedule = build_schedule(config, per_epoch)
    steps = range(schedule.total_steps)
    rates = [config.optimizer.learning_rate * schedule.at(step).lr_factor for step in steps]
    axes.plot(steps, rates, color="black", linewidth=1)
    start = 0
    for end, mode in zip(schedule.cycle_ends, schedule.cycle_modes, strict=True):
        if mode is Mode.SYNTHETIC:
            axes.axvspan(start, end, color=SYNTHETIC_COLOUR, alpha=0.5, linewidth=0)
        axes.text((start + end) / 2, max(rates) * 1.05, mode.value, ha="center", fontsize=8)
        start = end
    axes.set_ylim(0, max(rates) * 1.25)
    axes.set_ylabel("rate")
    axes.set_xlabel("step")


if __name__ == "__main__":
    main()
