"""The same seed on the same machine is the same run, bit for bit, whatever process makes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_text

# Prepares a text and trains on it, with all that draws random numbers; prints a digest of the ids,
# of all windows in their order, of the weights, and of what was reported.
PROGRAM = """
import hashlib, io, json, sys
from pathlib import Path
import torch
from sglm.config import parse_config
from sglm.runtime.device import make_deterministic
from sglm.optim.precision import unchecked_precision
from sglm.text.prepare import StoreSettings, prepare
from sglm.train import loop

threads, deterministic = int(sys.argv[1]), sys.argv[2] == "yes"
text, folder = map(Path, sys.argv[3:])
torch.set_num_threads(threads)
cpu = torch.device("cpu")
if deterministic:
    make_deterministic(cpu)
settings = StoreSettings(tokenizer="sentencepiece", vocab_size=300)
store = prepare([str(text)], folder / "store", settings)
config = parse_config(
    {
        "model": {"layers": 2, "hidden": 128},
        "dropout": {"input": 0.1, "between": 0.1, "output": 0.1, "weight": 0.1, "embedding": 0.1},
        "train": {"batch": 16, "window": 10, "seed": 7, "log_every_steps": 5},
        "schedule": {"unit": "steps", "cycles": [6.0, 12.0]},
    },
    "test",
)
order = hashlib.sha256()
step = loop.train_step

def watched(learner, window, *rest, **named):
    order.update(window.inputs_TB.numpy().tobytes() + window.targets_TB.numpy().tobytes())
    return step(learner, window, *rest, **named)

loop.train_step = watched
run = folder / "run"
loop.train(config, store, run, precision=unchecked_precision("fp32", cpu), console=io.StringIO())
lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
for line in lines:
    del line["seconds"]
print(json.dumps({
    "corpus": store.fingerprint,
    "order": order.hexdigest(),
    "weights": hashlib.sha256((run / "last" / "model.safetensors").read_bytes()).hexdigest(),
    "metrics": lines,
}))
"""


def whole_run(
    text: Path, folder: Path, threads: int, hash_seed: int, deterministic: bool
) -> object:
    folder.mkdir()
    # Python's sets and dictionaries of strings must not decide anything: another order each time.
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": str(threads)}
    word = "yes" if deterministic else "no"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(threads), word, str(text), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("threads", [1, 2])
def test_two_processes_make_the_same_run(tmp_path: Path, threads: int) -> None:
    text = tmp_path / "text.txt"
    text.write_text(make_text(1500), encoding="utf-8")
    first = whole_run(text, tmp_path / "a", threads, hash_seed=1, deterministic=False)
    # On a CPU --deterministic is accepted and changes nothing.
    assert whole_run(text, tmp_path / "b", threads, hash_seed=2, deterministic=True) == first
