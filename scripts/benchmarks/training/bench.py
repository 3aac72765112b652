"""Measures the speed of training steps, its upper limit, the shares of their parts, and memory.

    scripts/bench                             cases that suit this machine: twelve minutes, a table
    scripts/bench --sizes 2x650 --windows 5,35,70 --batches 20,80 --out bench.json
    scripts/bench --all --out bench.json      every size × window × batch
    scripts/bench --quick --json              one size, rates only, in under two minutes

In each case the arms are timed in turn, in rounds, a block of windows at a time, so that a busy
moment of the machine affects all of them; medians count. A block is eight windows, or as many as
there are from one reading of the coming text to the next. Each arm has a process of its own; the
cost of a synthesizer is measured within its process, from blocks with and without it in turn. The
arms:

plain            nn.LSTM, tied cross_entropy, clipping, fused AdamW: an ordinary training loop
plain prepared   the same with the settings of C libraries that `sglm train` makes
real             sglm's step, truncated backpropagation
learning KIND    the same, while a synthesizer learns (the real cycles of an alternating run)
synthetic KIND   the same, while its predictions are injected (the synthetic cycles)
alternating KIND a block of each in turn

The floor is the time of a step's matrix products alone. With --out, cases that are in the file
already are not measured again, so that an interrupted run can be continued.
"""

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.training.arms import ARMS, KINDS
from scripts.benchmarks.training.case import Place, Size
from scripts.benchmarks.training.measure import OWN, benchmark, measure
from scripts.benchmarks.training.table import table
from sglm.errors import InputError, SglmError
from sglm.optim.precision import make_precision
from sglm.runtime.device import pick_device
from sglm.runtime.process import prepare_process

SIZES = {"2x256": (2, 256, 7300), "2x650": (2, 650, 10_000), "3x1150": (3, 1150, 33_278)}
WINDOWS, BATCHES = (5, 35, 70), (20, 80, 256)
# Cases that take two cores some minutes: (size, window, batch).
CPU_CASES = [("2x256", 5, 20), ("2x256", 35, 20), ("2x256", 70, 20), ("2x650", 35, 20)]
DEFAULT_ARMS = [
    "plain",
    "plain prepared",
    "real",
    "learning adjoint",
    *[f"synthetic {kind}" for kind in KINDS],
]
# The arms and turns of --quick, and the names of their rates, on which other programs rely.
QUICK = {
    ("plain", OWN): "plain",
    ("alternating adjoint", "real"): "real",
    ("alternating adjoint", "learning"): "real_learning",
    ("alternating adjoint", "synthetic"): "synthetic",
}
QUICK_SECONDS, CASE_SECONDS = 70.0, 120.0


def quick(size: Size, place: Place) -> dict[str, float]:
    """Returns median tokens per second on the CPU, by the names on which other programs rely."""
    asked: dict[str, list[str | None]] = {}
    for name, turn in QUICK:
        asked.setdefault(name, []).append(turn)
    floor, taken, _ = measure(asked, size, place, QUICK_SECONDS, details=False)
    named = {"floor": floor} | {QUICK[which]: times for which, times in taken.items()}
    return {
        f"{name}_tokens_per_s": round(size.tokens / statistics.median(times), 1)
        for name, times in named.items()
    }


def chosen_cases(arguments: argparse.Namespace, on_cuda: bool) -> list[Size]:
    """Returns all combinations of the requested sizes; without any, cases for this machine."""
    asked = (arguments.sizes, arguments.windows, arguments.batches)
    if arguments.all or (on_cuda and asked == (None, None, None) and not arguments.quick):
        triples = list(product(SIZES, WINDOWS, BATCHES))
    elif asked == (None, None, None) and not arguments.quick:
        triples = CPU_CASES
    else:
        sizes = (arguments.sizes or "2x256").split(",")
        windows, batches = (
            whole_numbers(given or default)
            for given, default in ((arguments.windows, "35"), (arguments.batches, "20"))
        )
        triples = list(product(sizes, windows, batches))
    return [Size(*shape(name), batch=B, window=T) for name, T, B in triples]


def shape(name: str) -> tuple[int, int, int]:
    """Returns layers, units and vocabulary of `2x256` (a known size) or `2x256x7300`.

    Raises:
        InputError: It is neither.
    """
    if name in SIZES:
        return SIZES[name]
    numbers = whole_numbers(name.replace("x", ","))
    if len(numbers) != 3:
        known = ", ".join(SIZES)
        raise InputError(f"--sizes {name}: write LAYERSxUNITSxVOCABULARY, or one of {known}")
    return numbers[0], numbers[1], numbers[2]


def whole_numbers(text: str) -> list[int]:
    """Parses numbers such as `5,35,70`.

    Raises:
        InputError: One of them is not a whole number above 0.
    """
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"{text!r}: write whole numbers above 0, such as 5,35,70")
    return [int(part) for part in parts]


def read_arguments() -> argparse.Namespace:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, formatter_class=described
    )
    parser.add_argument("--quick", action="store_true", help="tokens per second only, CPU")
    parser.add_argument("--all", action="store_true", help="every size × window × batch")
    parser.add_argument("--sizes", help=f"of {','.join(SIZES)}, or LAYERSxUNITSxVOCABULARY")
    parser.add_argument("--windows", help="T, such as 5,35,70")
    parser.add_argument("--batches", help="B, such as 20,80,256")
    parser.add_argument("--arms", default=",".join(DEFAULT_ARMS), help="some of those above")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--seconds", type=float, default=CASE_SECONDS, help="of timing per case")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--out", type=Path, help="JSON file to write, or to continue")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> None:
    """Measures the requested cases and prints the results.

    Raises:
        SglmError: The request cannot be met.
    """
    names = arguments.arms.split(",")
    for name in names:
        if name not in ARMS:
            raise InputError(f"--arms {name}: no such arm; there are {', '.join(ARMS)}")
    device = torch.device("cpu") if arguments.quick else pick_device(arguments.device)
    place = Place(device.type, make_precision(arguments.precision, device).name)
    cases = chosen_cases(arguments, device.type == "cuda")
    if arguments.quick:
        if len(cases) != 1:
            raise InputError("--quick measures one case: give one size, window and batch")
        size = cases[0]
        result: dict[str, Any] = quick(size, place)
        if not arguments.json:
            threads = f"CPU, {torch.get_num_threads()} threads"
            print(f"{size}, {threads}, {place.precision}, torch {torch.__version__}\n")
            for name, rate in result.items():
                share = rate / result["floor_tokens_per_s"]
                label = name.removesuffix("_tokens_per_s").replace("_", " ")
                print(f"{label:16}{rate:10,.0f} tokens/s{share:10.0%} of the floor")
            return
    else:
        result = benchmark(cases, names, place, arguments.seconds, arguments.out)
    print(json.dumps(result) if arguments.json else table(result))


def main() -> int:
    """Returns the exit code: 2 for a request that is invalid."""
    prepare_process()
    try:
        run(read_arguments())
    except SglmError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
