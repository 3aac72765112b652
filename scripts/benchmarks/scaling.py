"""How much faster do several processes train one model? Strong scaling: they share the lanes.

    python -m scripts.benchmarks.scaling --processes 1,2 --size 2x256x7300 --batch 40

Each process has one thread. Trains on random words in a temporary folder, with the numbers of
processes in turn, in rounds. Prints the medians of tokens per second and the efficiency: the rate
of N processes over N times that of one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from sglm.text.prepare import StoreSettings, prepare


def store(folder: Path, vocab_size: int, tokens: int) -> Path:
    """Makes a token store of random words, uniform over the vocabulary."""
    words = np.random.default_rng(0).integers(vocab_size, size=tokens)
    text = folder / "text.txt"
    lines = np.array([f"w{word}" for word in words]).reshape(-1, 20)
    text.write_text("\n".join(map(" ".join, lines)) + "\n", encoding="utf-8")
    prepare([str(text)], folder / "store", StoreSettings(tokenizer="word", valid=0, test=0))
    return folder / "store"


def tokens_per_second(data: Path, out: Path, processes: int, settings: list[str]) -> float:
    """Returns the rate of one short training, its first steps included."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = [*launcher, "-m", "sglm.cli.main", "train", "tiny", "--data", str(data)]
    command += ["--out", str(out), "--device", "cpu", "--json"]
    for setting in settings:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    outcome = json.loads(done.stdout)
    return float(outcome["tokens_seen"]) / float(outcome["seconds"])


def main() -> None:
    described = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.scaling",
        description=__doc__,
        formatter_class=described,
    )
    parser.add_argument("--processes", default="1,2")
    parser.add_argument("--size", default="2x256x7300", help="LAYERSxUNITSxVOCABULARY")
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--window", type=int, default=35)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.processes.split(",")]
    layers, hidden, vocab_size = map(int, arguments.size.split("x"))
    settings = [
        *(f"model.layers={layers}", f"model.hidden={hidden}", 'schedule.unit="steps"'),
        *(f"train.batch={arguments.batch}", f"train.window={arguments.window}"),
        f"schedule.cycles=[{arguments.updates / 2}, {arguments.updates / 2}]",
        'schedule.mode="alternating"',
    ]
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = store(folder, vocab_size, 20 * (arguments.batch * arguments.window * 5))
        for number in range(arguments.rounds):
            for count in counts:
                out = folder / f"run-{count}-{number}"
                rates[count].append(tokens_per_second(data, out, count, settings))
    print(f"{'processes':>10}{'tokens/s':>12}{'efficiency':>12}")
    one = statistics.median(rates[counts[0]]) / counts[0]
    for count in counts:
        rate = statistics.median(rates[count])
        print(f"{count:10}{rate:12,.0f}{rate / (count * one):12.0%}")


if __name__ == "__main__":
    main()
