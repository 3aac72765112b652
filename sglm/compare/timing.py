"""Estimates how long runs will take, from a few steps of each variant, timed in a new process.

`python -m sglm.compare.timing` reads a `TimingTask` as JSON from stdin and prints the seconds of a
run, by variant. The process frees its memory by ending before the first run starts.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sglm.compare.process import Execution, worker_command
from sglm.config import Config, parse_config, plain_values
from sglm.optim.precision import Precision, make_precision
from sglm.optim.schedule import Mode, Schedule
from sglm.runtime.process import denormals_as_zero, prepare_process
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import CHUNK_STEPS, stream_nll
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.build import (
    build_batcher,
    build_decision_rule,
    build_learner,
    build_schedule,
    stretch_windows,
    token_counts,
)
from sglm.train.learner import Learner
from sglm.train.step import train_step
from sglm.train.window_decision import DecisionRule

_WARM_UP_STEPS = 5  # on a GPU, the kernels of a function are recorded at its fourth call
_TIMED_STEPS = 16  # contain whole stretches of an adjoint, and probes
_MOST_SECONDS = 1.0  # for these steps, per mode
_TIMED_CHUNKS = 8


@dataclass(frozen=True, kw_only=True)
class TimingTask:
    """The configurations by variant, and where and how they would be trained."""

    configs: dict[str, dict[str, Any]]
    data: str
    device: str
    precision: str


def seconds_of_runs(
    configs: Mapping[str, Config], store: TokenStore, execution: Execution
) -> dict[str, float] | None:
    """Estimates how long a run of each configuration will take, including start and evaluations.

    Returns None if the process failed or was interrupted.
    """
    task = TimingTask(
        configs={name: plain_values(config) for name, config in configs.items()},
        data=str(store.folder),
        device=execution.precision.device.type,
        precision=execution.precision.name,
    )
    started = time.monotonic()
    process = subprocess.run(
        worker_command("sglm.compare.timing"),
        input=json.dumps(asdict(task)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    wall = time.monotonic() - started
    if process.returncode != 0:
        return None
    answer = json.loads(process.stdout)
    start_up = max(0.0, wall - answer["busy"])
    return {name: start_up + seconds for name, seconds in answer["seconds"].items()}


def seconds_of_run(config: Config, store: TokenStore, precision: Precision) -> float:
    """Estimates how long a run takes, from a few steps of each mode and part of a validation."""
    batcher = build_batcher(config, store)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    learner = build_learner(config, token_counts(store), precision)
    stepper = _Stepper(
        learner, batcher=batcher, schedule=schedule, rule=build_decision_rule(config)
    )
    seconds = 0.0
    cycles = list(zip(schedule.cycle_modes, schedule.cycle_steps, strict=True))
    for mode in dict.fromkeys(schedule.cycle_modes):
        steps = sum(length for each, length in cycles if each is mode)
        seconds += steps * stepper.seconds_per_step(mode, stretch_windows(config))
    every = config.train.evaluate_every_steps or batcher.steps_per_epoch
    validations = schedule.total_steps // every
    validations += sum(end % every != 0 for end in schedule.cycle_ends)
    if "valid" in store.splits:
        seconds += validations * _validation_seconds(learner, store)
    return seconds


class _Stepper:
    """The training steps of a run, which may start anywhere."""

    def __init__(
        self, learner: Learner, *, batcher: Batcher, schedule: Schedule, rule: DecisionRule
    ) -> None:
        self.learner, self.batcher, self.schedule, self.rule = learner, batcher, schedule, rule

    def seconds_per_step(self, mode: Mode, stretch: int) -> float:
        """Returns the mean time of some steps from the start of the first cycle of that mode."""
        first = self.schedule.cycle_modes.index(mode)
        step = self.schedule.cycle_ends[first] - self.schedule.cycle_steps[first]
        # An estimator that reads ahead does so at the start of a stretch, and not within it.
        while step % self.batcher.steps_per_epoch % stretch:
            step += 1
        for _ in range(max(_WARM_UP_STEPS, (self.learner.past.maxlen or 0) + 1)):
            self._take_step(step)
            step += 1
        started, done = time.monotonic(), 0
        while done < _TIMED_STEPS and time.monotonic() - started < _MOST_SECONDS:
            self._take_step(step + done)
            done += 1
        return (time.monotonic() - started) / done

    def _take_step(self, step: int) -> None:
        plan = self.schedule.at(step % self.schedule.total_steps)
        window = self.batcher.at(step)
        decision = self.rule.decide(step, plan, window)
        device = self.learner.precision.device
        result = train_step(
            self.learner, window.to(device), decision, learning_rate=self.learner.rate(plan)
        )
        float(result.nll_nats)  # waits for a GPU


def _validation_seconds(learner: Learner, store: TokenStore) -> float:
    ids = store.ids("valid")
    part = ids[: CHUNK_STEPS * _TIMED_CHUNKS]
    started = time.monotonic()
    stream_nll(NetworkPredictor(learner.model), part, store.bos_id)
    return (time.monotonic() - started) * len(ids) / len(part)


def main() -> None:
    """Times the task from stdin, as the module's docstring describes."""
    prepare_process()
    task = TimingTask(**json.loads(sys.stdin.read()))
    store = TokenStore.open(task.data)
    precision = make_precision(task.precision, torch.device(task.device))
    started = time.monotonic()
    with denormals_as_zero():
        seconds = {
            name: seconds_of_run(parse_config(values, name), store, precision)
            for name, values in task.configs.items()
        }
    print(json.dumps({"seconds": seconds, "busy": time.monotonic() - started}))


if __name__ == "__main__":
    main()
