r"""Which gauge predicts the gain of a synthesizer: explained variance, or what moves the weights?

    python -m scripts.experiments.usefulness data/ptb data/wap data/code --out runs/usefulness

Trains every estimator on every corpus and measures it during the training, far more often than
usual: the explained variance of the state gradient, and the slope, cosine and share in parameter
space (`sglm.dni.gauge`). Then it ranks the gauges by their correlation, over all runs, with the
share of the horizon gap that the run has closed. Writes one file per run; a run whose file exists
is not made again.

    … --times        instead measures the time of an update of each arm, as a ratio to that of bptt
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.experiments.frontier import one_cycle, time_points
from sglm.config import Config
from sglm.dni.gauge import REFERENCE_STEPS
from sglm.errors import SglmError
from sglm.optim.precision import unchecked_precision
from sglm.runtime.process import denormals_as_zero
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import stream_nll
from sglm.storage.durable import replace_text
from sglm.text.store import TokenStore
from sglm.train.build import (
    build_batcher,
    build_decision_rule,
    build_learner,
    build_schedule,
    token_counts,
)
from sglm.train.step import train_step

BASELINE, CEILING = "bptt", "bptt-long"
SYNTHETIC = 'schedule.mode="synthetic" synthesizer.reach=10'
ARMS = {
    BASELINE: 'schedule.mode="real"',
    CEILING: f'schedule.mode="real" train.horizon={REFERENCE_STEPS}',
    "adjoint, every window": f"{SYNTHETIC} synthesizer.every=1",
    "adjoint, every 4": f"{SYNTHETIC} synthesizer.every=4",
    "adjoint, every 8, factor 1": f"{SYNTHETIC} synthesizer.every=8 synthesizer.factor=1.0",
    "other lane": f'{SYNTHETIC} synthesizer.every=1 synthesizer.inject="other-lane"',
    "noise": f'{SYNTHETIC} synthesizer.every=1 synthesizer.inject="noise"',
    **{
        f"{kind}, factor 1": f'{SYNTHETIC} synthesizer.kind="{kind}" synthesizer.factor=1.0'
        for kind in ("mlp", "feedback", "direct", "critic")
    },
    "feedback": f'{SYNTHETIC} synthesizer.kind="feedback" synthesizer.every=1',
}
# Their explained variance is that of predictions for a lane's own text, not of what they inject.
CONTROLS = ("other lane", "noise")
GAUGES = ("explained", "beta", "cosine", "share", "effect")
GAUGE_EVERY = 7  # windows; not a divisor of a stretch, so that every position in it is measured
KEPT = 100  # measurements that are averaged into one reading
BOOTSTRAPS = 2000


def measured_run(config: Config, store: TokenStore) -> dict[str, Any]:
    """Trains and measures; returns the perplexity at the end, the gauges and their products."""
    precision = unchecked_precision("fp32", torch.device("cpu"))
    learner = build_learner(config, token_counts(store), precision)
    batcher = build_batcher(config, store)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    rule = replace(build_decision_rule(config), gauge_every=GAUGE_EVERY)
    explained, products = [], []
    with denormals_as_zero():
        for step in range(schedule.total_steps):
            plan, window = schedule.at(step), batcher.at(step)
            decision = rule.decide(step, plan, window)
            if decision.gauge:
                window = window._replace(ahead=batcher.ahead(step, REFERENCE_STEPS))
            train_step(learner, window, decision, learning_rate=learner.rate(plan))
            if learner.gauge is not None and (step + 1) % (GAUGE_EVERY * KEPT) == 0:
                status = learner.estimator.status()
                assert status is not None
                explained.append(status.explained)
                products.append(learner.gauge.means.tolist())
        valid_N = store.ids("valid")
        nats = stream_nll(NetworkPredictor(learner.model), valid_N, store.tokenizer().eos_id)
    return {
        "perplexity": math.exp(nats / len(valid_N)),
        "gauges": gauges(explained, products),
        "products": products,
    }


def gauges(explained: Sequence[float], products: Sequence[Sequence[float]]) -> dict[str, float]:
    """Returns the gauges over a whole run.

    They are ratios of mean products, 0 where undefined; and `effect`, the mean product itself, in
    units of the exact effect's squared length, noise included.
    """
    if not products:
        return dict.fromkeys(GAUGES, 0.0)
    both, injected, exact = (statistics.mean(column) for column in zip(*products, strict=True))
    return {
        "explained": statistics.mean(explained),
        "beta": both / injected if injected > 0 else 0.0,
        "cosine": both / math.sqrt(injected * exact) if min(injected, exact) > 0 else 0.0,
        "share": both / exact if exact > 0 else 0.0,
        "effect": both,
    }


def rank_correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Returns Spearman's rank correlation. Ties share their mean rank."""

    def ranks(values: Sequence[float]) -> Any:
        array = np.asarray(values)
        return np.array([(np.sum(array < v) + np.sum(array <= v) - 1) / 2 for v in array])

    if len(set(left)) < 2 or len(set(right)) < 2:
        return math.nan
    return float(np.corrcoef(ranks(left), ranks(right))[0, 1])


def interval(
    left: Sequence[float], right: Sequence[float], groups: Sequence[object]
) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of the rank correlation.

    Whole groups of runs are drawn, because the seeds of an estimator on a corpus are not
    independent observations.
    """
    places: dict[object, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    of_group = list(places.values())
    generator = np.random.default_rng(0)
    values = []
    for _ in range(BOOTSTRAPS):
        drawn = [
            place
            for number in generator.integers(len(of_group), size=len(of_group))
            for place in of_group[number]
        ]
        value = rank_correlation([left[i] for i in drawn], [right[i] for i in drawn])
        if math.isfinite(value):
            values.append(value)
    low, high = np.quantile(values, [0.025, 0.975]) if values else (math.nan, math.nan)
    return float(low), float(high)


def with_shares(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the runs of estimators, each with the share of its corpus's gap that it closed."""
    results = list(results)
    ends: dict[tuple[str, str], list[float]] = {}
    for result in results:
        ends.setdefault((result["corpus"], result["arm"]), []).append(result["perplexity"])
    rows = []
    for result in results:
        if result["arm"] in (BASELINE, CEILING):
            continue
        base, best = (statistics.mean(ends[result["corpus"], arm]) for arm in (BASELINE, CEILING))
        rows.append(result | {"closed": (base - result["perplexity"]) / (base - best)})
    return rows


def table(results: Sequence[dict[str, Any]]) -> str:
    """Returns the table of the arms; with a ceiling, also those of the runs and of the gauges."""
    if CEILING not in {result["arm"] for result in results}:
        return arms_table(results)
    rows = with_shares(results)
    return f"{arms_table(results)}\n\n{runs_table(rows)}\n\n{gauges_table(rows)}"


def arms_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns a table of each arm's means over seeds, and of its perplexities' deviation."""
    lines = [
        "| corpus | estimator | seeds | explained | beta | perplexity | against bptt, by seed |",
        "| --- " * 7 + "|",
    ]
    found: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for result in results:
        found.setdefault((result["corpus"], result["arm"]), {})[result["seed"]] = result
    for (corpus, arm), by_seed in found.items():
        perplexities = [each["perplexity"] for each in by_seed.values()]
        spread = f" ± {statistics.stdev(perplexities):.2f}" if len(by_seed) > 1 else ""
        base = found.get((corpus, BASELINE), {})
        changes = [
            f"{each['perplexity'] - base[seed]['perplexity']:+.2f}"
            for seed, each in by_seed.items()
            if seed in base
        ]
        explained, beta = (
            statistics.mean(each["gauges"][name] for each in by_seed.values())
            for name in ("explained", "beta")
        )
        lines.append(
            f"| {corpus} | {arm} | {len(by_seed)} | {explained:.2f} | {beta:.2f}"
            f" | {statistics.mean(perplexities):.2f}{spread} | {', '.join(changes)} |"
        )
    return "\n".join(lines)


def times_table(times: dict[str, Any]) -> str:
    """Returns the table of the result of `frontier.time_points`."""
    lines = ["| estimator | time of an update, times bptt's | quartiles |", "| --- " * 3 + "|"]
    for arm, own in times.items():
        low, high = own["quartiles"]
        lines.append(f"| {arm} | {own['ratio']:.2f} | {low:.2f} … {high:.2f} |")
    return "\n".join(lines)


def runs_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table with a row for each estimator on each corpus.

    It has the final perplexity of every seed, and the means of gap closed and gauges.
    """
    lines = [
        f"| corpus | estimator | perplexity, seed by seed | gap closed | {' | '.join(GAUGES)} |",
        "| --- " * (4 + len(GAUGES)) + "|",
    ]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["corpus"], row["arm"]), []).append(row)
    for (corpus, arm), of_arm in found.items():
        of_arm.sort(key=lambda row: int(row["seed"]))
        perplexities = ", ".join(f"{row['perplexity']:.2f}" for row in of_arm)
        closed = statistics.mean(row["closed"] for row in of_arm)
        means = (statistics.mean(row["gauges"][name] for row in of_arm) for name in GAUGES)
        gauges = " | ".join(f"{mean:.2g}" for mean in means)
        lines.append(f"| {corpus} | {arm} | {perplexities} | {100 * closed:.0f} % | {gauges} |")
    return "\n".join(lines)


def gauges_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table of how well each gauge ranks all runs, and those without the controls."""
    lines = [
        "| gauge | rank correlation with the share closed (95 %) | without the controls |",
        "| --- | --- | --- |",
    ]
    estimators = [row for row in rows if row["arm"] not in CONTROLS]
    for name in GAUGES:
        lines.append(f"| {name} | {_correlation(rows, name)} | {_correlation(estimators, name)} |")
    return "\n".join(lines)


def _correlation(rows: Sequence[dict[str, Any]], gauge: str) -> str:
    closed, values = [row["closed"] for row in rows], [row["gauges"][gauge] for row in rows]
    low, high = interval(values, closed, [(row["corpus"], row["arm"]) for row in rows])
    return f"{rank_correlation(values, closed):.2f} ({low:.2f} … {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.usefulness", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path, nargs="+", help="Token stores, one per corpus.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--times", action="store_true", help="Time the arms on the first corpus.")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--arms", help="Arms, separated by ';'. Default: all.")
    parser.add_argument("--set", action="append", default=[], help="As in sglm train.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that two can run at once
    try:
        if arguments.times:
            arms = {arm: ARMS[arm] for arm in _arms(arguments)}
            store = TokenStore.open(arguments.data[0])
            print(times_table(time_points(store, arms, arguments.set)))
        else:
            print(table(run(arguments)))
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def _arms(arguments: argparse.Namespace) -> list[str]:
    return arguments.arms.split(";") if arguments.arms else list(ARMS)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Makes the missing runs; returns all results in the folder."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    arms = _arms(arguments)
    for seed in map(int, arguments.seeds.split(",")):
        for folder in arguments.data:
            store = TokenStore.open(folder)
            for arm in arms:
                name = arm.replace(", ", "-").replace(" ", "-")
                path = arguments.out / f"{folder.name}-{name}-seed{seed}.json"
                if path.exists():
                    continue
                result = measured_run(one_cycle(ARMS[arm], seed, arguments.set), store)
                result |= {"corpus": folder.name, "arm": arm, "seed": seed}
                replace_text(path, json.dumps(result, indent=1) + "\n")
                print(f"{path.stem}: {result['perplexity']:.2f}", file=sys.stderr, flush=True)
    return [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*.json"))]


if __name__ == "__main__":
    main()
