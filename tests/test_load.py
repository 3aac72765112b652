"""One loaded model under load: threads and forked workers at once, and nothing changes."""

import subprocess
import sys
from pathlib import Path

# A process of its own: what is computed on two threads before the fork is what a fork breaks, and a
# process that waits for ever can be ended. Large enough for torch to use both threads; the texts
# are of many lengths and beginnings, so that all ways of reading them are taken.
PROGRAM = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from sglm.runtime.process import prepare_process
prepare_process()  # threads that wait let others work, and here are many
import torch
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.lm import LanguageModel
from sglm.scoring.predictor import NetworkPredictor
from tests.tiny_models import LINES, make_tokenizer

torch.set_num_threads(2)
torch.manual_seed(0)
tokenizer = make_tokenizer("sentencepiece")
shape = ModelShape(
    vocab_size=tokenizer.vocab_size, layers=1, hidden=128, embedding=64, tied=True
)
network = LSTMLanguageModel(shape).eval()
lm = LanguageModel(NetworkPredictor(network), tokenizer=tokenizer)

jobs = [
    [f"{LINES[(n + m) % len(LINES)]} the cat {n}" * (1 + m % 2) for m in range(34)]
    for n in range(32)
]

def numbers(job):
    many = lm.score(jobs[job])
    state, pieces = lm.start(), []
    for text in jobs[job][:2]:
        piece, state = lm.extend(state, text)
        pieces.append(piece.logprob)
    carried = lm.perplexity(jobs[job][:3]).nll_nats
    drawn = lm.generate("the", tokens=3, seed=job)
    return [*(each.logprob for each in many), *pieces, carried, drawn]

serial = [numbers(job) for job in range(32)]

def same(found, job):
    # Rounding: other texts' company and other numbers of threads change the order of sums.
    return all(
        left == right if isinstance(left, str) else abs(left - right) <= 1e-5 * abs(right)
        for left, right in zip(found, serial[job], strict=True)
    )

def fork_workers(count):
    workers = []
    for worker in range(count):
        pid = os.fork()
        if pid == 0:
            right = all(same(numbers(job), job) for job in range(worker, 32, 11))
            os._exit(0 if right and torch.get_num_threads() == 1 else 1)
        workers.append(pid)
    return workers

workers = fork_workers(3)
with ThreadPoolExecutor(32) as pool:
    together = threading.Barrier(32)
    # All 32 really at once: each waits for the others before it begins.
    at_once = pool.map(lambda job: (together.wait(), numbers(job))[1], range(32))
    assert all(same(found, job) for job, found in enumerate(at_once))
    assert torch.get_num_threads() == 2
assert [os.waitpid(pid, 0)[1] for pid in workers] == [0] * 3
print("the same")
"""


def test_threads_and_forked_workers_give_the_serial_numbers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        timeout=150,  # it takes seconds; forked workers used to wait for ever
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr
