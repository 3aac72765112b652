"""Does `sglm train --dry-run` predict the memory of a run? Predicted against measured peaks.

    python -m scripts.benchmarks.memory [--json] [--precision bf16] [--only NAME ...]

Each case trains for a few steps, with everything that belongs to a run (evaluations, snapshots,
checkpoints), in a process of its own, whose peak resident size is read from the system at its end.
Before that, another process computes the prediction of `--dry-run`. Needs Linux; runs on the CPU
with one thread.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sglm.text.prepare import StoreSettings, prepare

# The command line; at its end it prints the peak resident size of its process, from the system.
RUN = """
import atexit, sys

def report_peak():
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    print("peak", int(line.split()[1]) * 1024, file=sys.stderr)

atexit.register(report_peak)
from sglm.cli.main import app
app()
"""

TINY = "model.layers=1 model.hidden=32 train.batch=4 train.window=8"
SMALL = "model.hidden=256 train.batch=20 train.window=35"
MEDIUM = "model.hidden=650 train.batch=20 train.window=35"
REAL = "schedule.mode=real schedule.cycles=[6.0]"
# Long enough for whole stretches, and for the gauge.
BOTH = "schedule.cycles=[3.0,80.0]"
# name: (vocabulary, settings)
CASES = {
    "tiny": (100, f"{TINY} {BOTH}"),
    "2×256 real": (7300, f"{SMALL} {REAL}"),
    "2×256 mlp": (7300, f"{SMALL} {BOTH} synthesizer.kind=mlp"),
    "2×256 recurrent": (7300, f"{SMALL} {BOTH} synthesizer.kind=recurrent"),
    "2×256 adjoint": (7300, f"{SMALL} {BOTH}"),
    "2×256 adjoint, every 8": (
        7300,
        f"{SMALL} {BOTH} synthesizer.every=8 synthesizer.factor=1.0",
    ),
    "2×256 horizon 350": (
        7300,
        f"{SMALL} schedule.mode=real schedule.cycles=[12.0] train.horizon=350",
    ),
    "2×256 random": (7300, f"{SMALL} {REAL.replace('6', '40')} train.truncation=random"),
    "2×256 sgd, dropout, untied": (
        7300,
        f"{SMALL} {REAL} optimizer.kind=sgd model.tied=false dropout.input=0.2 dropout.output=0.2"
        " dropout.between=0.2 dropout.weight=0.2 dropout.embedding=0.1",
    ),
    "2×650 B=20": (10_000, f"{MEDIUM} {REAL}"),
    "2×650 B=80": (10_000, f"{MEDIUM} {REAL} train.batch=80"),
    "1×512 V=33,000": (
        33_000,
        f"model.layers=1 model.hidden=512 train.batch=40 train.window=70 {REAL.replace('6', '3')}",
    ),
}
# Other sizes, which were not used while the prediction was developed.
HELD_OUT = {
    "3×384, E=200, dropout": (
        10_000,
        "model.layers=3 model.hidden=384 model.embedding=200 train.batch=40 train.window=70"
        f" {REAL} dropout.input=0.4 dropout.output=0.4 dropout.between=0.2 dropout.weight=0.5",
    ),
    "1×128 characters, T=100": (
        60,
        f"model.layers=1 model.hidden=128 train.batch=64 train.window=100 {REAL}",
    ),
    "2×320 horizon 560": (
        3000,
        "model.hidden=320 train.batch=16 train.window=70 train.horizon=560 schedule.mode=real"
        " schedule.cycles=[12.0]",
    ),
    "2×200 random": (
        5000,
        "model.hidden=200 train.batch=64 train.window=20 train.truncation=random"
        f" {REAL.replace('6', '40')}",
    ),
    "2×512 adjoint": (
        5000,
        f"model.hidden=512 train.batch=32 train.window=70 {BOTH}",
    ),
    "2×400 V=20,000 sgd, momentum": (
        20_000,
        f"model.hidden=400 train.batch=20 train.window=35 {REAL} optimizer.kind=sgd"
        " optimizer.momentum=0.9",
    ),
}


HEAD = """| case | predicted MiB | measured MiB | ratio | libraries MiB | peak when |
| --- | --- | --- | --- | --- | --- |"""


def make_store(vocab_size: int, tokens: int, folder: Path) -> Path:
    """Makes a token store of random words, each at least once; returns its folder."""
    rng = random.Random(0)
    ids = [*range(vocab_size - 2), *(rng.randrange(vocab_size - 2) for _ in range(tokens))]
    lines = [" ".join(f"w{i}" for i in ids[at : at + 50]) for at in range(0, len(ids), 50)]
    train, valid = folder / "train.txt", folder / "valid.txt"
    train.write_text("\n".join(lines) + "\n", encoding="utf-8")
    valid.write_text("\n".join(lines[-12:]) + "\n", encoding="utf-8")
    prepare(
        [str(train)], folder / "store", StoreSettings(tokenizer="word", valid=str(valid), test=0.0)
    )
    return folder / "store"


def sglm(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done


def compare(name: str, precision: str = "fp32") -> dict[str, Any]:
    """Returns the row of one case, in bytes."""
    vocab_size, settings = (CASES | HELD_OUT)[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "config.toml"
        config.write_text('[schedule]\nunit = "steps"\n', encoding="utf-8")
        batch, window = (
            int(next(each.split("=")[1] for each in settings.split() if each.startswith(key)))
            for key in ("train.batch=", "train.window=")
        )
        store = make_store(vocab_size, 45 * batch * window, folder)
        arguments = ["train", str(config), "--data", str(store), "--out", str(folder / "run")]
        arguments += [part for each in settings.split() for part in ("--set", each)]
        arguments += ["--device", "cpu", "--precision", precision]
        plan = json.loads(sglm(*arguments, "--dry-run", "--json").stdout)
        measured = int(sglm(*arguments).stderr.rsplit("peak", 1)[1])
    memory = plan["memory"]
    return {
        "case": name,
        "held_out": name in HELD_OUT,
        "predicted": plan["memory_bytes"],
        "measured": measured,
        "ratio": round(plan["memory_bytes"] / measured, 3),
        "base": memory["base"],
        "worst": memory["worst"],
        "parts": memory,
    }


def line(row: dict[str, Any]) -> str:
    """Returns a row as a line of the table."""
    predicted, measured, base = (
        f"{row[key] / 2**20:,.0f}" for key in ("predicted", "measured", "base")
    )
    label = f"{row['case']} (held out)" if row["held_out"] else row["case"]
    return f"| {label} | {predicted} | {measured} | {row['ratio']:.2f} | {base} | {row['worst']} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.memory", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    every = [*CASES, *HELD_OUT]
    parser.add_argument("--only", nargs="+", choices=every, default=every, metavar="NAME")
    arguments = parser.parse_args()
    rows = []
    if not arguments.json:
        print(HEAD)
    for name in arguments.only:
        row = compare(name, arguments.precision)
        rows.append(row)
        if not arguments.json:
            print(line(row), flush=True)
    if arguments.json:
        print(json.dumps({"cases": rows}))


if __name__ == "__main__":
    main()
