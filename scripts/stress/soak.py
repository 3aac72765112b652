"""Does anything grow that should not? Watches the real commands for a long time, from outside.

    python -m scripts.stress.soak score --lines 10000000    # ten million, through `sglm score`
    python -m scripts.stress.soak train --steps 1000000     # a week of steps of a toy model
    python -m scripts.stress.soak train --steps 2000 --json

Reads the process's resident memory, open files and threads from /proc, and the size of its run
folder. Reports their growth after the first third of the work, when caches and buffers are full. A
run's folder should grow by a few numbers per log interval and evaluation, and by nothing else.
Needs Linux; the process has one thread.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from sglm.text.prepare import StoreSettings, prepare

SAMPLES = 60
WARM_SHARE = 1 / 3
WORDS = 200_000
LONGEST_LINE = 24  # words


@dataclass(frozen=True)
class Sample:
    """Memory, open files and threads of the process after `done` lines or steps."""

    done: int
    seconds: float
    rss_mb: float
    files: int
    threads: int
    tensorboard_files: int = 0
    tensorboard_bytes: int = 0
    metrics_bytes: int = 0
    run_entries: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.stress.soak", description=__doc__.split("\n")[0]
    )
    parser.add_argument("what", choices=("score", "train"))
    parser.add_argument("--lines", type=int, default=10_000_000, help="lines to score")
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps to train")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if arguments.what == "score":
            samples = score(folder, arguments.lines)
        else:
            samples = train(folder, arguments.steps)
    facts = verdict(samples)
    if arguments.json:
        print(json.dumps({**facts, "samples": [asdict(sample) for sample in samples]}))
        return
    print(" ".join(f"{name:>17}" for name in asdict(samples[0])))
    for sample in samples:
        print(" ".join(f"{value:>17,}" for value in asdict(sample).values()))
    print(", ".join(f"{name} {value:,}" for name, value in facts.items()))


def verdict(samples: list[Sample]) -> dict[str, float]:
    """Returns the growth of each measure after the first third of the work."""
    last = samples[-1]
    warm = next(sample for sample in samples if sample.done >= WARM_SHARE * last.done)
    written = last.tensorboard_bytes - warm.tensorboard_bytes
    return {
        "done": last.done,
        "seconds": last.seconds,
        "rss_growth_mb": round(last.rss_mb - warm.rss_mb, 1),
        "file_growth": last.files - warm.files,
        "thread_growth": last.threads - warm.threads,
        "tensorboard_files": last.tensorboard_files,
        "tensorboard_bytes_per_1000": round(1000 * written / max(last.done - warm.done, 1)),
        "run_entry_growth": last.run_entries - warm.run_entries,
    }


def words(seed: int) -> Iterator[str]:
    """Yields lines of random words: a few are frequent and very many are rare, as in text."""
    draw = random.Random(seed).random
    while True:
        count = 1 + int(draw() * LONGEST_LINE)
        yield " ".join(f"w{int(WORDS ** draw())}" for _ in range(count)) + "\n"


def make_store(folder: Path) -> Path:
    text = folder / "text.txt"
    lines = words(seed=0)
    text.write_text("".join(next(lines) for _ in range(500)), encoding="utf-8")
    prepare([str(text)], folder / "store", StoreSettings(tokenizer="sentencepiece", vocab_size=300))
    return folder / "store"


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sglm.cli.main", *map(str, arguments)]


def training(store: Path, out: Path, steps: int, every: int) -> list[str]:
    """Returns the command that trains a tiny model, with cycles of both modes and checkpoints.

    Its synthesizer reads ahead, because that keeps the most data between windows.
    """
    # Always five cycles, so that the number of snapshots does not grow with the steps.
    cycles = [steps // 5] * 4 + [steps - 4 * (steps // 5)]
    settings = [
        *("model.layers=1", "model.hidden=4", "train.batch=2", "train.window=2"),
        *("schedule.unit=steps", f"schedule.cycles={[float(cycle) for cycle in cycles]}"),
        f"train.log_every_steps={every}",
        f"train.evaluate_every_steps={10 * every}",
        f"train.checkpoint_every_steps={10 * every}",
    ]
    options = [part for setting in settings for part in ("--set", setting)]
    # An empty configuration: the defaults.
    config = out.with_name("config.toml")
    config.write_text("", encoding="utf-8")
    return command("train", config, "--data", store, "--out", out, "--device", "cpu", *options)


def start(arguments: list[str], **pipes: Any) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, **pipes)


def look(process: "subprocess.Popen[bytes]", done: int, started: float, run: Path) -> Sample:
    """Takes a sample of /proc and of the run folder."""
    place = Path("/proc") / str(process.pid)
    status = dict(
        line.split(":", 1) for line in (place / "status").read_text().splitlines() if ":" in line
    )
    events = list((run / "tensorboard").glob("*"))
    metrics = run / "metrics.jsonl"
    return Sample(
        done=done,
        seconds=round(time.monotonic() - started, 1),
        rss_mb=round(int(status["VmRSS"].split()[0]) * 1024 / 1e6, 1),
        files=len(list((place / "fd").iterdir())),
        threads=int(status["Threads"]),
        tensorboard_files=len(events),
        tensorboard_bytes=sum(path.stat().st_size for path in events),
        metrics_bytes=metrics.stat().st_size if metrics.exists() else 0,
        run_entries=len(list(run.glob("*"))) + len(list(run.glob("checkpoints/*"))),
    )


def score(folder: Path, lines: int) -> list[Sample]:
    """Samples a process that scores `lines` lines; checks that all of them come back."""
    store = make_store(folder)
    run = folder / "run"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if start(training(store, run, 20, 10), **quiet).wait():
        raise SystemExit("the training of the model for scoring failed")
    samples, every, done = [], max(lines // SAMPLES, 1), 0
    with start(
        command("score", run, "--json", "--device", "cpu"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        feeder = threading.Thread(target=feed, args=(process.stdin, lines), daemon=True)
        started = time.monotonic()
        feeder.start()
        for done, _ in enumerate(process.stdout, start=1):
            if done % every == 0:
                samples.append(look(process, done, started, run))
                note(samples[-1])
        feeder.join()
    if process.returncode or done != lines:
        raise SystemExit(f"{done} of {lines} lines came back, exit code {process.returncode}")
    return samples


def note(sample: Sample) -> None:
    """Prints a sample, to show progress."""
    print(f"{sample.done:,} in {sample.seconds:,.0f} s: {sample.rss_mb:,} MB", file=sys.stderr)


def feed(pipe: IO[bytes], lines: int) -> None:
    """Writes the lines in blocks, so that this process does not limit the speed."""
    made = words(seed=1)
    with pipe:
        for _ in range(lines):
            pipe.write(next(made).encode())


def train(folder: Path, steps: int) -> list[Sample]:
    """Samples a process that trains for `steps` steps."""
    store, run = make_store(folder), folder / "run"
    every = max(steps // 1000, 10)
    samples: list[Sample] = []
    started = time.monotonic()
    with start(
        training(store, run, steps, every), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if (done := steps_done(line)) is None:
                continue
            if done < steps and done >= len(samples) * steps / SAMPLES:
                samples.append(look(process, done, started, run))
                note(samples[-1])
    if process.returncode:
        raise SystemExit(f"the training ended with exit code {process.returncode}")
    return samples


def steps_done(line: bytes) -> int | None:
    """Reads the number of steps from a line of progress: `step 1,200/2,000  cycle …`."""
    parts = line.split()
    if len(parts) < 2 or parts[0] != b"step" or b"/" not in parts[1]:
        return None
    return int(parts[1].partition(b"/")[0].replace(b",", b""))


if __name__ == "__main__":
    main()
