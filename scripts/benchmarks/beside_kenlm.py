"""Compares the speed and the perplexity of sglm's scores with those of KenLM on the same text.

    sglm prep ptb/train.txt --tokenizer word --out data/ptb
    sglm train ptb-small --data data/ptb --out runs/ptb
    python -m scripts.experiments.kneser_ney data/ptb ptb.arpa --order 5
    python -m scripts.benchmarks.beside_kenlm runs/ptb ptb.arpa ptb/valid.txt [--json]

Needs `pip install 'sglm[kenlm]'`. Every line is a text of its own whose end is scored too, and both
models have the same vocabulary. All ways to score are timed in turn, in rounds; medians count.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sglm
from sglm.runtime.process import prepare_process
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.totals import text_totals

ROUNDS, QUICK_ROUNDS = 5, 1
Step = Callable[[], float]


def scorers(run: Path, arpa: Path, lines: list[str]) -> dict[str, Step]:
    """Returns functions that score all lines and return the summed surprisal in nats."""
    import kenlm

    ngrams: Any = kenlm.Model(str(arpa))
    lm = sglm.load(run, "cpu")
    half = NetworkPredictor(lm.model, compute_dtype=torch.bfloat16)

    def by_kenlm() -> float:
        return float(sum(-ngrams.score(line) for line in lines)) * math.log(10)

    def in_batches(predictor: Any = lm.predictor) -> float:
        totals = text_totals(predictor, lm.tokenizer, lines, eos=True)
        return sum(each.nll_nats for each in totals)

    return {
        "KenLM, line by line": by_kenlm,
        "sglm, in batches": in_batches,
        "sglm, in batches, bfloat16": lambda: in_batches(half),
        "sglm, line by line": lambda: -sum(lm.score(line, eos=True).logprob for line in lines),
    }


def measure(
    steps: dict[str, Step], rounds: int, clock: Callable[[], float]
) -> dict[str, tuple[float, float]]:
    """Returns `(seconds, nats)` of each, median seconds; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    nats = {}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            nats[name] = step()
            if number > 0:
                seconds[name].append(clock() - start)
    return {name: (statistics.median(seconds[name]), nats[name]) for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.beside_kenlm", description=__doc__.splitlines()[0]
    )
    parser.add_argument("run", type=Path, help="a word-level model")
    parser.add_argument("arpa", type=Path, help="an n-gram model of the same words")
    parser.add_argument("text", type=Path, help="one text per line")
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="measure processor time, which other work on the machine disturbs less",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    lines = arguments.text.read_text(encoding="utf-8").splitlines()
    tokens = sum(len(line.split()) + 1 for line in lines)
    steps = scorers(arguments.run, arguments.arpa, lines)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    rows = {
        name: {"tokens_per_s": tokens / seconds, "perplexity": math.exp(nats / tokens)}
        for name, (seconds, nats) in measure(steps, rounds, clock).items()
    }
    if arguments.json:
        print(json.dumps({"tokens": tokens, "threads": arguments.threads, **rows}))
        return
    kenlms = rows["KenLM, line by line"]["tokens_per_s"]
    print("| | tokens per second | time, over KenLM's | perplexity |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['tokens_per_s']:,.0f} | {kenlms / row['tokens_per_s']:.1f}"
            f" | {row['perplexity']:.2f} |"
        )


if __name__ == "__main__":
    prepare_process()
    main()
