"""Runs the arms of scripts/bench in turn and sums up: rates, spread, shares, memory, floor."""

import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.training.arms import has_synthesizer
from scripts.benchmarks.training.case import Place, Size
from scripts.benchmarks.training.floor import floor, flops, moved_bytes, rates
from scripts.benchmarks.training.memory_limit import free_bytes, needed_bytes
from scripts.benchmarks.training.worker import Task, running
from sglm.errors import InputError, SglmError
from sglm.storage.durable import replace_text

FEWEST_ROUNDS = 5


OWN = None  # an arm's own turns, as a run would take them

Times = dict[tuple[str, str | None], list[float]]


def measure(
    asked: Mapping[str, Sequence[str | None]],
    size: Size,
    place: Place,
    seconds: float,
    details: bool,
) -> tuple[list[float], Times, dict[str, dict[str, Any]]]:
    """Times the floor, and each arm in each of its turns, round by round.

    Makes as many rounds as fit into `seconds`. If rounds are long, it still makes a few, but stops
    after about twice that time.

    Args:
        asked: The turns of each arm that a round times: `OWN` or some of `arms.TURNS`. A turn that
            is listed several times is timed several times.
        size, place: What is trained, and where.
        seconds: Duration of all rounds.
        details: Whether to measure each arm's shares and peak memory too.

    Returns:
        Seconds per window by round, of the floor and of each arm and turn; and the details.

    Raises:
        SglmError: Memory ran out.
    """
    threads = torch.get_num_threads()
    with running([Task(name, size, place, threads) for name in asked]) as processes:
        arms = dict(zip(asked, processes, strict=True))
        blocks = {name: arm.ask("block") for name, arm in arms.items()}
        for name, arm in arms.items():
            # At its first step an arm is built, allocates memory, and libraries choose kernels.
            for turn in dict.fromkeys(asked[name]):
                arm.ask("seconds", blocks[name], turn)
        measure_floor = floor(size, place)
        measure_floor()
        floor_times: list[float] = []
        taken: Times = {(name, turn): [] for name in arms for turn in asked[name]}
        start = time.perf_counter()
        rounds = 0
        while rounds == 0 or _another_round(rounds, time.perf_counter() - start, seconds):
            floor_times.append(measure_floor())
            for name, arm in arms.items():
                # The order rotates: the first turn finds another arm's memory in the caches.
                first = rounds % len(asked[name])
                for turn in (*asked[name][first:], *asked[name][:first]):
                    taken[name, turn].append(arm.ask("seconds", blocks[name], turn))
            rounds += 1
        known: dict[str, dict[str, Any]] = {}
        for name, arm in arms.items() if details else ():
            known[name] = {"memory_mb": arm.ask("memory_mb"), "shares": arm.ask("shares")}
        return floor_times, taken, known


def _another_round(rounds: int, elapsed: float, seconds: float) -> bool:
    return elapsed < seconds or rounds < 3 or (rounds < FEWEST_ROUNDS and elapsed < 2 * seconds)


def measure_case(names: list[str], size: Size, place: Place, seconds: float) -> dict[str, Any]:
    """Returns all results of one case; or `skipped`, the reason why there are none."""
    device = torch.device(place.device)
    needed, free = needed_bytes(names, size), free_bytes(device)
    if needed > 0.9 * free:
        return {
            "skipped": f"needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"
        }
    try:
        asked = {name: [OWN, "real"] if has_synthesizer(name) else [OWN] for name in names}
        floor_times, taken, known = measure(asked, size, place, seconds, details=True)
    except (torch.OutOfMemoryError, SglmError) as error:
        return {"skipped": str(error).splitlines()[0]}
    floor_seconds = statistics.median(floor_times)
    arms_found = {}
    for name in names:
        found = arms_found[name] = _rates(taken[name, OWN], size, floor_seconds)
        # Relative to the same learner's real turns if it has them, otherwise to another process.
        real = taken.get((name, "real"), taken.get(("real", OWN)))
        if real is not None and name != "real":
            # Compared within each round, so that a slow moment of the machine cancels.
            over = [a / b - 1 for a, b in zip(taken[name, OWN], real, strict=True)]
            low, middle, high = _quartiles(over)
            found["over_real"] = round(middle, 4)
            found["over_real_quartiles"] = [round(low, 4), round(high, 4)]
        shares, memory_mb = known[name]["shares"], known[name]["memory_mb"]
        found["shares"] = {part: round(share, 4) for part, share in shares.items()}
        found["peak_memory_mb"] = round(memory_mb, 1)
    return {
        "rounds": len(floor_times),
        "floor": floor_rates(floor_seconds, size, place, best=rates(place)),
        "arms": arms_found,
    }


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, method="inclusive")
    return low, middle, high


def _rates(times: list[float], size: Size, floor_seconds: float) -> dict[str, Any]:
    low, median, high = _quartiles(times)
    return {
        "tokens_per_s": round(size.tokens / median, 1),
        "tokens_per_s_quartiles": [round(size.tokens / each, 1) for each in (high, low)],
        "ms_per_window": round(1e3 * median, 4),
        "of_floor": round(floor_seconds / median, 4),
    }


def floor_rates(
    floor_seconds: float, size: Size, place: Place, *, best: Mapping[str, float]
) -> dict[str, float]:
    """Returns lower bounds on a step's time, and the rates behind them.

    Args:
        floor_seconds: Seconds of its products, one after another (`floor`).
        size, place: What is trained, and where.
        best: The machine's best rates (`rates`).
    """
    moved = moved_bytes(size, place.compute_dtype.itemsize)
    return {
        "tokens_per_s": round(size.tokens / floor_seconds, 1),
        "ms_per_window": round(1e3 * floor_seconds, 4),
        "gflops_per_s": round(flops(size) / floor_seconds / 1e9, 1),
        "best_gflops_per_s": round(best["gemm_flops_per_s"] / 1e9, 1),
        "ms_at_best": round(1e3 * flops(size) / best["gemm_flops_per_s"], 4),
        "copy_gb_per_s": round(best["copy_bytes_per_s"] / 1e9, 2),
        "moved_mb": round(moved / 1e6, 2),
        "ms_moving": round(1e3 * moved / best["copy_bytes_per_s"], 4),
    }


def machine(place: Place) -> dict[str, Any]:
    """Returns the facts on which the numbers depend, besides the code."""
    on_cuda = place.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "precision": place.precision,
        "torch": torch.__version__,
        "over_real": "within a process",  # earlier code compared processes
    }


def benchmark(
    cases: list[Size],
    names: list[str],
    place: Place,
    seconds: float,
    out: Path | None,
) -> dict[str, Any]:
    """Measures all cases; with `out`, reads results from there first and adds each new case.

    Raises:
        InputError: The results in `out` are of another machine, or were measured otherwise.
    """
    result: dict[str, Any] = {"machine": machine(place), "cases": []}
    if out is not None and out.exists():
        result = json.loads(out.read_text(encoding="utf-8"))
        if result["machine"] != machine(place):
            raise InputError(f"{out}: was measured with {result['machine']}; give another --out")
    for index, size in enumerate(cases):
        wanted = {"size": asdict(size), "asked": names}
        if any({key: case[key] for key in wanted} == wanted for case in result["cases"]):
            continue
        print(f"{index + 1} of {len(cases)}: {size}", file=sys.stderr, flush=True)
        found = measure_case(names, size, place, seconds)
        if "skipped" in found:
            print(f"  skipped: {found['skipped']}", file=sys.stderr, flush=True)
        result["cases"].append(wanted | found)
        if out is not None:
            replace_text(out, json.dumps(result, indent=1) + "\n")
    return result
