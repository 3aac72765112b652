"""The plan of a run: what `sglm train --dry-run` prints before the run does anything."""

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from sglm.config import Config
from sglm.model.language_model import ModelShape
from sglm.optim.precision import Precision
from sglm.optim.schedule import Mode, Schedule
from sglm.runtime.ranks import ALONE, Ranks
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.build import build_batcher, build_schedule, store_shape
from sglm.train.dry_run.memory import MemoryPlan, plan_memory

_BARS = " ▁▂▃▄▅▆▇█"
_CHART_COLUMNS = 46


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The parts of a run, and the memory that it will take in this process."""

    config: Config
    shape: ModelShape
    batcher: Batcher
    schedule: Schedule
    memory: MemoryPlan

    @property
    def processes(self) -> int:
        """The number of processes that share the lanes."""
        return self.config.train.batch // len(self.batcher.lanes)

    def peak_rates(self) -> list[float]:
        """Returns the highest learning rate of each cycle: at its start or during the warm-up."""
        schedule, rates, start = self.schedule, list[float](), 0
        for steps in schedule.cycle_steps:
            rising = range(start, min(max(schedule.warmup_steps, start + 1), start + steps))
            factor = max(schedule.at(step).lr_factor for step in rising)
            rates.append(self.config.optimizer.learning_rate * factor)
            start += steps
        return rates

    def as_json(self) -> dict[str, Any]:
        """Returns plain values: totals, and the mode, steps and peak rate of every cycle."""
        schedule = self.schedule
        cycles = zip(schedule.cycle_modes, schedule.cycle_steps, self.peak_rates(), strict=True)
        return {
            "steps": schedule.total_steps,
            "steps_per_epoch": self.batcher.steps_per_epoch,
            "parameters": self.shape.parameters,
            "processes": self.processes,
            "memory_bytes": self.memory.peak,
            "memory": {**asdict(self.memory), "worst": self.memory.worst},
            "cycles": [
                {"mode": mode.value, "steps": steps, "peak_rate": rate}
                for mode, steps, rate in cycles
            ],
        }

    def describe(self) -> str:
        """Describes sizes, cycles, modes and rates for people, with a chart."""
        train, shape, schedule, batcher = (
            self.config.train,
            self.shape,
            self.schedule,
            self.batcher,
        )
        tokens = train.batch * sum(batcher.lengths) / batcher.steps_per_epoch  # mean of a step
        shared = f"; each of {self.processes} processes" if self.processes > 1 else ""
        lines = [
            *_lines(
                "model",
                f"{_describe_layers(shape)}, vocabulary {shape.vocab_size:,}"
                f"{_describe_cutoffs(shape)}, {shape.parameters:,} parameters",
            ),
            *_lines(
                "data",
                f"{len(batcher.ids_N):,} tokens, {batcher.steps_per_epoch:,} steps an epoch"
                f" of {train.batch} lanes × {train.window}",
            ),
            *_lines("memory", f"{_describe_memory(self.memory)}{shared}"),
            *_lines(
                "length",
                f"{schedule.total_steps:,} steps,"
                f" {round(schedule.total_steps * tokens):,} tokens,"
                f" {schedule.total_steps / batcher.steps_per_epoch:.2f} epochs",
            ),
            "",
            *self._cycles(),
            "",
            *draw_schedule(schedule),
        ]
        return "\n".join(lines)

    def _cycles(self) -> list[str]:
        """Returns a heading and a line for every cycle."""
        schedule, peak = self.schedule, self.config.optimizer.learning_rate
        lines = [
            f"{'cycle':>5}  {'mode':<9}  {'steps':>9}  {'epochs':>7}  {'first rate':>10}"
            f"  {'peak rate':>10}  {'last rate':>10}"
        ]
        start = 0
        rows = zip(schedule.cycle_steps, schedule.cycle_modes, self.peak_rates(), strict=True)
        for cycle, (steps, mode, top) in enumerate(rows):
            first, last = (peak * schedule.at(s).lr_factor for s in (start, start + steps - 1))
            epochs = steps / self.batcher.steps_per_epoch
            lines.append(
                f"{cycle:>5}  {mode.value:<9}  {steps:>9,}  {epochs:>7.2f}"
                f"  {first:>10.3g}  {top:>10.3g}  {last:>10.3g}"
            )
            start += steps
        return lines


def plan_run(
    config: Config, store: TokenStore, precision: Precision, *, ranks: Ranks = ALONE
) -> RunPlan:
    """Plans a training run without training.

    Raises:
        InputError, ConfigError: The run could not begin.
    """
    batcher = build_batcher(config, store, ranks=ranks)
    shape = store_shape(config, store)
    return RunPlan(
        config=config,
        shape=shape,
        batcher=batcher,
        schedule=build_schedule(config, batcher.steps_per_epoch),
        memory=plan_memory(
            config,
            shape,
            batcher,
            valid_bytes=store.ids("valid").nbytes if "valid" in store.splits else 0,
            device_type=precision.device.type,
            precision=precision.name,
        ),
    )


def _lines(name: str, text: str) -> list[str]:
    """Wraps the text to 80 columns, with the name before it."""
    return textwrap.wrap(text, 80, initial_indent=f"{name:<9}", subsequent_indent=" " * 9)


def _describe_layers(shape: ModelShape) -> str:
    """Describes the number and widths of the layers; the last may differ (`ModelShape.widths`)."""
    *others, last = shape.widths
    if not others or others[0] == last:
        return f"{shape.layers} layer{'s' if others else ''} × {last}"
    return f"{len(others)} layer{'s' if len(others) > 1 else ''} × {others[0]} and one × {last}"


def _describe_cutoffs(shape: ModelShape) -> str:
    """Names the words at which the tails of an adaptive softmax begin; empty for a full one."""
    cutoffs = " and ".join(f"{cutoff:,}" for cutoff in shape.cutoffs)
    return f" (softmax cut off at {cutoffs})" if cutoffs else ""


def _describe_memory(memory: MemoryPlan) -> str:
    worst_size = memory.situations[memory.worst]
    total, base, lasting, worst, holes = (
        f"{size / 2**20:,.0f}"
        for size in (memory.peak, memory.base, memory.lasting, worst_size, memory.holes)
    )
    if not memory.base:
        return (
            f"about {total} MiB of the device: {lasting} lasting, {worst} for {memory.worst}"
            " (a rough figure: an H200 took 0.85 to 1.6 times as much)"
        )
    return (
        f"about {total} MiB: {base} for the libraries, {lasting} lasting,"
        f" {worst} for {memory.worst}, {holes} lost to fragmentation"
    )


def draw_schedule(schedule: Schedule) -> list[str]:
    """Draws two lines: the learning rate as a bar chart over the run, and the mode of each bar."""
    columns = min(_CHART_COLUMNS, schedule.total_steps)
    plans = [schedule.at(schedule.total_steps * column // columns) for column in range(columns)]
    rates = "".join(_BARS[round(plan.lr_factor * (len(_BARS) - 1))] for plan in plans)
    modes = "".join("s" if plan.mode is Mode.SYNTHETIC else "r" for plan in plans)
    return [f"rate     {rates}", f"mode     {modes}   (r real, s synthetic)"]
