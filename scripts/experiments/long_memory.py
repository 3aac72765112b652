"""How long a memory does truncated training teach? Copy and Repeat Copy, window by window.

Every run trains an LSTM on one task with windows of T steps, exactly as on text; whenever the mean
error falls below 0.15 bits, the episodes get longer. The result is the longest length solved within
a given number of updates, for each arm (a way of training).

A length is reported as in Jaderberg et al. 2017: N·R + 3 for N bits written R times.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from scripts.experiments.long_memory_tasks import (
    NO_TARGET,
    TASKS,
    VOCAB_SIZE,
    RunningError,
    TaskStream,
)
from sglm.config import Config, parse_config, plain_values
from sglm.errors import InputError, SglmError, did_you_mean
from sglm.optim.precision import make_precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.storage.durable import replace_text
from sglm.text.batcher import ComingText, Window
from sglm.train.build import (
    build_decision_rule,
    build_learner,
    lookahead_steps,
    stretch_windows,
)
from sglm.train.learner import Learner
from sglm.train.step import train_step

Values = Mapping[str, Mapping[str, Any]]
Result = dict[str, Any]

# The settings that all arms share. Learning rate and clipping norm are those that were best for
# plain truncation, among rates of 3e-4 to 3e-3 and norms from 0.1 to none.
BASE: Values = {
    "model": {"layers": 1, "hidden": 128, "embedding": 32, "tied": False},
    "train": {"batch": 32},
    "optimizer": {"kind": "adam", "learning_rate": 1e-3, "clip_norm": 0.25, "averaging": 0.0},
}

ADJOINT: dict[str, Any] = {"kind": "adjoint", "every": 1, "reach": 20}

# The settings that each arm adds.
ARMS: dict[str, Values] = {
    "bptt": {"schedule": {"mode": "real"}},
    "adjoint": {"schedule": {"mode": "synthetic"}, "synthesizer": ADJOINT},
    "bptt-long": {"schedule": {"mode": "real"}},
    "noise": {"schedule": {"mode": "synthetic"}, "synthesizer": {**ADJOINT, "inject": "noise"}},
    # Predicts from the state alone, as in the paper; with the self-calibrating factor, and without.
    "mlp": {"schedule": {"mode": "synthetic"}, "synthesizer": {"kind": "mlp"}},
    "mlp-1": {"schedule": {"mode": "synthetic"}, "synthesizer": {"kind": "mlp", "factor": 1.0}},
}
BASELINE, CEILING = "bptt", "bptt-long"

# Jaderberg et al. 2017, table 2: T_task at T = 2, 3, 4, 5.
PAPER_WINDOWS = (2, 3, 4, 5)
PAPER = {
    "copy": {
        "BPTT (paper)": (7, 8, 10, 8),
        "DNI (paper)": (16, 14, 18, 18),
        "DNI + Aux (paper)": (16, 17, 19, 18),
    },
    "repeat-copy": {
        "BPTT (paper)": (7, 5, 19, 23),
        "DNI (paper)": (39, 33, 39, 59),
        "DNI + Aux (paper)": (39, 59, 67, 59),
    },
}


class Run(NamedTuple):
    """One cell of the grid."""

    task: str
    arm: str
    window: int
    seed: int

    @property
    def file_name(self) -> str:
        return f"{self.task}-{self.arm}-T{self.window}-seed{self.seed}.json"

    def values(self) -> dict[str, dict[str, Any]]:
        """Returns its configuration as plain values."""
        train = {"window": self.window, "seed": self.seed}
        if self.arm == CEILING:  # exact over the window and the text that the adjoint reads
            train["horizon"] = (1 + math.ceil(ADJOINT["reach"] / self.window)) * self.window
        own = ({"train": train}, ARMS[self.arm])
        merged = {section: dict(values) for section, values in BASE.items()}
        for values in own:
            for section, changes in values.items():
                merged.setdefault(section, {}).update(changes)
        return merged


def train(run: Run, updates: int) -> Result:
    """Trains for `updates` updates.

    Returns:
        The run, its settings and its seconds; `solved`, the solved lengths in order, each with the
        number of updates until then; the error at the last length (None: of too few targets).
    """
    config = parse_config(run.values(), run.arm)
    learner, rule = make_learner(config), build_decision_rule(config)
    stream = TaskStream(run.task, config.train.batch, run.seed)
    mode = Mode.REAL if config.schedule.mode == "real" else Mode.SYNTHETIC
    plan = StepPlan(lr_factor=1.0, mode=mode, cycle=0)
    solved: list[Result] = []
    error = RunningError()
    begin = time.perf_counter()
    for update in range(1, updates + 1):
        settled = stream.settled
        window = next_window(stream, config, update - 1)
        decision = rule.decide(update - 1, plan, window)
        result = train_step(learner, window, decision, learning_rate=learner.rate(plan))
        if not settled:
            continue  # some lanes still have shorter episodes, which are easier
        targets = int((window.targets_TB != NO_TARGET).sum())
        error.add(float(result.nll_nats) / math.log(2), targets)
        if error.solved:
            lesson = {**stream.length._asdict(), "length": stream.length.paper_length}
            solved.append({**lesson, "updates": update, "error_bits": error.mean_bits})
            stream.grow()
            error = RunningError()
    seconds = time.perf_counter() - begin
    return {
        **run._asdict(),
        "updates": updates,
        "values": run.values(),
        "config": plain_values(config),
        "solved": solved,
        "final_length": stream.length.paper_length,
        "final_error_bits": error.mean_bits,
        "seconds": round(seconds, 2),
    }


def make_learner(config: Config) -> Learner:
    """Builds a learner as for text, but without token frequencies to start from."""
    counts_V = np.zeros(VOCAB_SIZE, dtype=np.int64)
    return build_learner(config, counts_V, make_precision("fp32", torch.device("cpu")))


def next_window(stream: TaskStream, config: Config, update: int) -> Window:
    """Returns the stream's next window, as training on text gets it. The stream has no end."""
    steps, stretch, coming = config.train.window, stretch_windows(config), None
    ahead = lookahead_steps(config)
    if ahead is not None and update % stretch == 0:
        coming = ComingText(*stream.peek(stretch * steps + ahead))
    return Window(*stream.window(steps), is_first=update == 0, is_last=False, coming=coming)


def train_all(runs: Iterable[Run], updates: int, folder: Path) -> None:
    """Makes each run that has no file yet, and writes its file.

    Raises:
        InputError: A run's file exists, but was made with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        path = folder / run.file_name
        if path.exists():
            there = read_result(path)
            if (there["updates"], there.get("values")) != (updates, run.values()):
                raise InputError(
                    f"{path} was made with other settings or updates;"
                    " remove it or give another --out"
                )
            print(f"{path} exists already", file=sys.stderr)
            continue
        result = train(run, updates)
        replace_text(path, json.dumps(result, indent=1) + "\n")
        print(
            f"{path}: length {longest(result, updates)}, {result['seconds']:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def read_result(path: Path) -> Result:
    """Reads one run's file."""
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
        missing = {*Run._fields, "updates", "solved", "seconds"} - result.keys()
    except (ValueError, AttributeError):
        missing = {"a JSON object"}
    if missing:
        raise InputError(f"{path} is not the result of a run (no {min(missing)}); remove it")
    return result


def longest(result: Result, updates: int) -> int:
    """Returns the longest length solved within `updates` updates; 0 if none was solved."""
    lengths = (lesson["length"] for lesson in result["solved"] if lesson["updates"] <= updates)
    return max(lengths, default=0)


def tables(folder: Path) -> str:
    """Returns, for each task, tables of all arms' lengths beside the paper's, and of their cost.

    Raises:
        InputError: The folder has no results.
    """
    results = [read_result(path) for path in sorted(folder.glob("*-T*-seed*.json"))]
    if not results:
        raise InputError(f"{folder}: no results; run without --table first")
    parts = []
    for task in TASKS:
        of_task = [result for result in results if result["task"] == task]
        if of_task:
            parts += [length_table(task, of_task), cost_table(task, of_task)]
    return "\n\n".join(parts)


def length_table(task: str, results: list[Result]) -> str:
    """Returns a table of median and all seeds' lengths, and of ratios to the baseline's median.

    All arms are compared at equal updates: for each T, the fewest that any run made.
    """
    windows = sorted({result["window"] for result in results})
    updates = {
        window: min(result["updates"] for result in results if result["window"] == window)
        for window in windows
    }
    lengths = {
        key: [longest(result, updates[key[1]]) for result in group]
        for key, group in by_arm_and_window(results)
    }

    def cell(arm: str, window: int) -> str:
        if (arm, window) not in lengths:
            return ""
        of_seeds, baseline = lengths[arm, window], lengths.get((BASELINE, window))
        median = statistics.median(of_seeds)
        text = f"{median:g} ({', '.join(map(str, of_seeds))})"
        if arm != BASELINE and baseline is not None and statistics.median(baseline) > 0:
            text += f" ×{median / statistics.median(baseline):.2f}"
        return text

    rows = [[arm, *(cell(arm, window) for window in windows)] for arm in arms_of(results)]
    for name, figures in PAPER[task].items():
        of_window = dict(zip(PAPER_WINDOWS, figures, strict=True))
        rows.append([name, *(str(of_window.get(window, "")) for window in windows)])
    rows.append(["updates", *(f"{updates[window]:,}" for window in windows)])
    return f"{task}: longest solved length, N·R + 3; median (all seeds) × baseline\n\n" + markdown(
        [[task, *(f"T={window}" for window in windows)], *rows]
    )


def cost_table(task: str, results: list[Result]) -> str:
    """Returns a table of milliseconds per update, medians over seeds."""
    windows = sorted({result["window"] for result in results})
    costs = {
        key: statistics.median(1000 * result["seconds"] / result["updates"] for result in group)
        for key, group in by_arm_and_window(results)
    }
    rows = [
        [arm, *(f"{costs[arm, T]:.2f}" if (arm, T) in costs else "" for T in windows)]
        for arm in arms_of(results)
    ]
    return f"{task}: milliseconds per update\n\n" + markdown(
        [[task, *(f"T={window}" for window in windows)], *rows]
    )


def by_arm_and_window(results: list[Result]) -> Iterator[tuple[tuple[str, int], list[Result]]]:
    """Yields the runs that differ only in their seed, in the order of the seeds."""
    for arm, window in sorted({(result["arm"], result["window"]) for result in results}):
        group = [r for r in results if (r["arm"], r["window"]) == (arm, window)]
        yield (arm, window), sorted(group, key=lambda result: int(result["seed"]))


def arms_of(results: list[Result]) -> list[str]:
    """Returns the arms that have results, in the order of `ARMS`; unknown ones last."""
    known = list(ARMS)
    found = {result["arm"] for result in results}
    return sorted(found, key=lambda arm: (known.index(arm) if arm in known else len(known), arm))


def markdown(rows: list[list[str]]) -> str:
    """Returns a table; the first row is its head."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "| --- " * len(rows[0]) + "|", *body])


def shard_of(runs: list[Run], shard: str) -> list[Run]:
    """Returns every n-th run from the i-th on, for a shard `i/n`; i counts from 1."""
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise InputError(f"--shard {shard}: write it as 1/2 or 2/2")
    return runs[int(index) - 1 :: int(count)]


def grid(arguments: argparse.Namespace) -> list[Run]:
    """Returns all requested runs, seed by seed, so that an early stop leaves whole tables."""
    arms = arguments.arms.split(",")
    for arm in arms:
        if arm not in ARMS:
            raise InputError(f"--arms {arm}: no such arm{did_you_mean(arm, ARMS)}")
    windows = numbers("--windows", arguments.windows, least=1)
    seeds = numbers("--seeds", arguments.seeds, least=0)
    tasks = [arguments.task] if arguments.task else list(TASKS)
    return [
        Run(task, arm, window, seed)
        for seed, task, window, arm in product(seeds, tasks, windows, arms)
    ]


def numbers(option: str, text: str, least: int) -> list[int]:
    """Parses `2,3,5` as integers."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= least for part in parts):
        raise InputError(f"{option} {text}: write it as 2,3,5, each at least {least}")
    return [int(part) for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/long_memory", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--task", choices=TASKS, help="both by default")
    parser.add_argument("--windows", default="2,3,4,5,8", metavar="T,…", help="%(default)s")
    parser.add_argument("--arms", default=",".join(ARMS), metavar="ARM,…", help="%(default)s")
    parser.add_argument("--seeds", default="0,1,2", metavar="SEED,…", help="%(default)s")
    parser.add_argument("--updates", type=int, default=50_000, metavar="N", help="%(default)s")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' results")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="only the I-th of N parts")
    parser.add_argument("--table", action="store_true", help="print results so far; run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that two processes can share two cores
    try:
        if arguments.table:
            print(tables(arguments.out))
        else:
            if arguments.updates < 1:
                raise InputError(f"--updates {arguments.updates}: at least 1")
            train_all(shard_of(grid(arguments), arguments.shard), arguments.updates, arguments.out)
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
