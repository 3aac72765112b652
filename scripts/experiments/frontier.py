r"""What share of the horizon gap is closed, at what cost? Estimators beside longer exact gradients.

    python -m scripts.experiments.frontier data/wap --out runs/frontier --seeds 0,1,2

Trains every point with every seed (an unfinished run is continued, a finished one kept), then
measures the time of a step of each point, in turn in one process, and draws both. The gap is `bptt`
minus `bptt-long` at the horizon of `--ceiling`; times are medians of paired ratios to `bptt`.

    … --only-train            only trains; the same command without it measures times
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scripts.experiments.frontier_picture import draw
from sglm.config import Config, load_config
from sglm.errors import InputError, SglmError
from sglm.optim.precision import unchecked_precision
from sglm.runtime.process import denormals_as_zero
from sglm.storage.durable import replace_text
from sglm.text.store import TokenStore
from sglm.train.build import (
    build_batcher,
    build_decision_rule,
    build_learner,
    build_schedule,
    token_counts,
)
from sglm.train.loop import train
from sglm.train.step import train_step

BASELINE = "bptt"
CEILING = "bptt-long 20"
ADJOINT = 'schedule.mode="synthetic" synthesizer.kind="adjoint"'
POINTS = {
    BASELINE: 'schedule.mode="real"',
    **{f"bptt-long {h}": f'schedule.mode="real" train.horizon={h}' for h in (10, 20, 40, 80)},
    **{
        f"adjoint {every} × {reach}": f"{ADJOINT} synthesizer.every={every}"
        f" synthesizer.reach={reach}"
        for every, reach in ((1, 5), (1, 10), (1, 20), (2, 10), (4, 10), (4, 20), (8, 15))
    },
}
WARM_STEPS = 250  # before timing: by then the adjoint's network learns at regular intervals
BLOCK = 10  # steps timed together
ROUNDS = 15


def one_cycle(settings: str, seed: int, overrides: Sequence[str]) -> Config:
    """Returns the recipe `short-window` with one cosine cycle, as long as its cycles together.

    Args:
        settings: The overrides of this run only, separated by spaces.
        seed: Seed of the weights and dropout.
        overrides: The overrides that all runs share.
    """
    steps = sum(load_config("short-window", overrides).schedule.cycle_lengths())
    own = [f"schedule.cycles=[{steps}]", f"train.seed={seed}", *settings.split()]
    return load_config("short-window", [*overrides, *own])


def perplexity_of(run: Path) -> float:
    """Reads the validation perplexity after the last update."""
    last = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return float(json.loads(last)["token_ppl"])


def train_points(
    store: TokenStore,
    out: Path,
    *,
    points: Iterable[str],
    seeds: Iterable[int],
    sets: Sequence[str],
) -> dict[str, dict[int, float]]:
    """Trains the points; returns their validation perplexities, by point and seed."""
    found: dict[str, dict[int, float]] = {}
    for seed in seeds:
        for point in points:
            run = out / f"{point.replace(' ', '-').replace('×', 'x')}-seed{seed}"
            with open(out / f"{run.name}.log", "a", encoding="utf-8") as log:
                train(
                    one_cycle(POINTS[point], seed, sets),
                    store,
                    run,
                    precision=unchecked_precision("fp32", torch.device("cpu")),
                    console=log,
                )
            found.setdefault(point, {})[seed] = perplexity_of(run)
            print(f"{point}, seed {seed}: {found[point][seed]:.2f}", file=sys.stderr, flush=True)
    return found


class Timed:
    """A training that is timed block by block, in turn with others."""

    def __init__(self, config: Config, store: TokenStore) -> None:
        precision = unchecked_precision("fp32", torch.device("cpu"))
        self.learner = build_learner(config, token_counts(store), precision)
        self.batcher = build_batcher(config, store)
        self.rule = build_decision_rule(config)
        self.schedule = build_schedule(config, self.batcher.steps_per_epoch)
        self.step = 0

    def seconds(self, steps: int) -> float:
        """Returns the seconds that `steps` steps take, in the middle of an epoch."""
        start = time.perf_counter()
        for _ in range(steps):
            plan = self.schedule.at(self.step % self.schedule.total_steps)
            window = self.batcher.at(self.step)
            decision = self.rule.decide(self.step, plan, window)
            train_step(self.learner, window, decision, learning_rate=self.learner.rate(plan))
            self.step += 1
        return time.perf_counter() - start


def time_points(
    store: TokenStore, points: Mapping[str, str], sets: Sequence[str]
) -> dict[str, Any]:
    """Measures the time of a step as a ratio to `bptt`: median and quartiles of paired blocks.

    Args:
        store: The token store of the training text.
        points: The overrides of each point.
        sets: The overrides that all points share.
    """
    trainings = {point: Timed(one_cycle(own, 0, sets), store) for point, own in points.items()}
    seconds: dict[str, list[float]] = {point: [] for point in points}
    with denormals_as_zero():
        for training in trainings.values():
            training.seconds(WARM_STEPS)
        for _ in range(ROUNDS):
            for point in random.sample(list(points), len(points)):
                seconds[point].append(trainings[point].seconds(BLOCK))
    times = {}
    for point, own in seconds.items():
        ratios = [mine / base for mine, base in zip(own, seconds[BASELINE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        times[point] = {
            "ratio": round(middle, 3),
            "quartiles": [round(low, 3), round(high, 3)],
            "ms": round(1000 * statistics.median(own) / BLOCK, 2),
        }
    return times


def shares(perplexities: dict[str, dict[int, float]], ceiling: str) -> dict[str, list[float]]:
    """Returns the share of the mean gap that each seed closes, against `bptt` with that seed."""
    base, best = perplexities[BASELINE], perplexities[ceiling]
    gap = statistics.mean(base.values()) - statistics.mean(best.values())
    return {
        point: [(base[seed] - ppl) / gap for seed, ppl in of_seed.items()]
        for point, of_seed in perplexities.items()
    }


def table(result: dict[str, Any]) -> str:
    lines = ["| point | perplexity | share of the gap | time |", "| --- | --- | --- | --- |"]
    for point, of_seed in result["perplexities"].items():
        share = 100 * statistics.mean(result["shares"][point])
        timing = result["times"].get(point)
        shown = "" if timing is None else f"{timing['ratio']:.2f}"
        perplexities = ", ".join(f"{ppl:.2f}" for ppl in of_seed.values())
        lines.append(f"| {point} | {perplexities} | {share:.0f} % | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.frontier", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--points", help="Points, separated by ';'. Default: all.")
    parser.add_argument("--ceiling", default=CEILING)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only-train", action="store_true")
    parser.add_argument("--title", default="")
    parser.add_argument("--set", action="append", default=[], help="As in sglm train.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        result = run(arguments)
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    print(table(result))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes the missing runs; writes `frontier.json` and, if there are times, `frontier.png`.

    Raises:
        InputError: A point is unknown, or one of the two that define the gap is missing.
    """
    points = arguments.points.split(";") if arguments.points else list(POINTS)
    for point in points:
        if point not in POINTS:
            raise InputError(f"unknown point {point!r}; known: {'; '.join(POINTS)}")
    if not {BASELINE, arguments.ceiling} <= set(points):
        raise InputError(f"the gap is between {BASELINE} and {arguments.ceiling}; give both points")
    store = TokenStore.open(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    perplexities = train_points(
        store,
        arguments.out,
        points=points,
        seeds=[int(seed) for seed in arguments.seeds.split(",")],
        sets=arguments.set,
    )
    path = arguments.out / "frontier.json"
    if arguments.only_train:
        times = json.loads(path.read_text())["times"] if path.exists() else {}
    else:
        times = time_points(store, {point: POINTS[point] for point in points}, arguments.set)
    result = {
        "title": arguments.title or arguments.data.name,
        "threads": arguments.threads,
        "perplexities": perplexities,
        "shares": shares(perplexities, arguments.ceiling),
        "times": {point: times[point] for point in points if point in times},
    }
    replace_text(path, json.dumps(result, indent=1) + "\n")
    if result["times"]:
        draw([result], arguments.out / "frontier.png")
    return result


if __name__ == "__main__":
    main()
