"""What a run is going to do, before it does it: the text of `sglm train --dry-run`."""

from dataclasses import asdict
from typing import Any

from sglm.config import Config
from sglm.model.language_model import ModelShape
from sglm.optim.schedule import Mode, Schedule
from sglm.text.batcher import Batcher
from sglm.train.dry_run.memory import MemoryPlan, parameter_count

_BARS = " ▁▂▃▄▅▆▇█"
_CHART_COLUMNS = 64


def plan_as_json(
    config: Config,
    shape: ModelShape,
    batcher: Batcher,
    schedule: Schedule,
    memory: MemoryPlan,
) -> dict[str, Any]:
    """The plan as plain values: totals, and mode, steps and peak rate of every cycle."""
    return {
        "steps": schedule.total_steps,
        "steps_per_epoch": batcher.steps_per_epoch,
        "parameters": parameter_count(shape),
        "processes": config.train.batch // len(batcher.lanes),
        "memory_bytes": memory.peak,
        "memory": {**asdict(memory), "worst": memory.worst},
        "cycles": [
            {"mode": mode.value, "steps": steps, "peak_rate": rate}
            for mode, steps, rate in zip(
                schedule.cycle_modes,
                schedule.cycle_steps,
                peak_rates(config, schedule),
                strict=True,
            )
        ],
    }


def peak_rates(config: Config, schedule: Schedule) -> list[float]:
    """The highest learning rate of each cycle: at its start, or somewhere in the warm-up."""
    rates, start = [], 0
    for steps in schedule.cycle_steps:
        rising = range(start, min(max(schedule.warmup_steps, start + 1), start + steps))
        factor = max(schedule.at(step).lr_factor for step in rising)
        rates.append(config.optimizer.learning_rate * factor)
        start += steps
    return rates


def describe_plan(
    config: Config,
    shape: ModelShape,
    batcher: Batcher,
    schedule: Schedule,
    memory: MemoryPlan,
) -> str:
    """Cycles, modes, rates, sizes and a chart, as lines for people."""
    peak = config.optimizer.learning_rate
    tokens_per_step = config.train.batch * config.train.window
    processes = config.train.batch // len(batcher.lanes)
    shared = f"; each of {processes} processes" if processes > 1 else ""
    lines = [
        f"model    {shape.layers} layers × {shape.hidden}, vocabulary {shape.vocab_size:,},"
        f" {parameter_count(shape):,} parameters",
        f"data     {len(batcher.ids_N):,} tokens, {batcher.steps_per_epoch:,} steps an epoch"
        f" of {config.train.batch} lanes × {config.train.window}",
        f"memory   {_memory(memory)}{shared}",
        f"length   {schedule.total_steps:,} steps,"
        f" {schedule.total_steps * tokens_per_step:,} tokens,"
        f" {schedule.total_steps / batcher.steps_per_epoch:.2f} epochs",
        "",
        f"{'cycle':>5}  {'mode':<9}  {'steps':>9}  {'epochs':>7}  {'first rate':>10}"
        f"  {'peak rate':>10}  {'last rate':>10}",
    ]
    start = 0
    rows = zip(
        schedule.cycle_steps, schedule.cycle_modes, peak_rates(config, schedule), strict=True
    )
    for cycle, (steps, mode, top) in enumerate(rows):
        first, last = (peak * schedule.at(s).lr_factor for s in (start, start + steps - 1))
        lines.append(
            f"{cycle:>5}  {mode.value:<9}  {steps:>9,}  {steps / batcher.steps_per_epoch:>7.2f}"
            f"  {first:>10.3g}  {top:>10.3g}  {last:>10.3g}"
        )
        start += steps
    return "\n".join([*lines, "", *draw_schedule(schedule)])


def _memory(memory: MemoryPlan) -> str:
    worst_size = memory.situations[memory.worst]
    total, base, lasting, worst, holes = (
        f"{size / 2**20:,.0f}"
        for size in (memory.peak, memory.base, memory.lasting, worst_size, memory.holes)
    )
    if not memory.base:
        return (
            f"about {total} MiB of the device: {lasting} lasting, {worst} for {memory.worst}"
            " (in float32; not compared with a device so far)"
        )
    return (
        f"about {total} MiB: {base} for the libraries, {lasting} lasting,"
        f" {worst} for {memory.worst}, {holes} lost between them"
    )


def draw_schedule(schedule: Schedule) -> list[str]:
    """Two lines: the learning rate as a bar chart over the run, and the mode below each bar."""
    columns = min(_CHART_COLUMNS, schedule.total_steps)
    plans = [schedule.at(schedule.total_steps * column // columns) for column in range(columns)]
    rates = "".join(_BARS[round(plan.lr_factor * (len(_BARS) - 1))] for plan in plans)
    modes = "".join("s" if plan.mode is Mode.SYNTHETIC else "r" for plan in plans)
    return [f"rate     {rates}", f"mode     {modes}   (r real, s synthetic)"]
