"""Runs the arms of scripts/bench in turn and sums up: rates, spread, shares, memory, floor."""

import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench_case import STRETCH, Place, Size
from bench_floor import floor, flops, moved_bytes, rates
from bench_memory import free_bytes, needed_bytes
from bench_worker import Task, running

from sglm.durable import replace_text
from sglm.errors import InputError, SglmError

FEWEST_ROUNDS = 5


def measure(
    names: Iterable[str], size: Size, place: Place, seconds: float, details: bool
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Seconds a window of the floor and of each arm, round by round, and the arms' details.

    As many rounds as fit into so many seconds; a few if one takes long, but then not for longer
    than twice that time if it can be helped. Details are each arm's shares and peak memory.

    Raises:
        SglmError: memory ran out.
    """
    names, threads = list(names), torch.get_num_threads()
    with running([Task(name, size, place, threads) for name in names]) as processes:
        arms = dict(zip(names, processes, strict=True))
        for arm in arms.values():
            # Here it is built, allocates memory, and lets libraries choose their kernels.
            arm.ask("seconds", STRETCH)
        measure_floor = floor(size, place)
        measure_floor()
        taken: dict[str, list[float]] = {name: [] for name in ("floor", *arms)}
        start = time.perf_counter()
        rounds = 0
        while rounds == 0 or _another_round(rounds, time.perf_counter() - start, seconds):
            taken["floor"].append(measure_floor())
            for name, arm in arms.items():
                taken[name].append(arm.ask("seconds", STRETCH))
            rounds += 1
        known: dict[str, dict[str, Any]] = {}
        for name, arm in arms.items() if details else ():
            known[name] = {"memory_mb": arm.ask("memory_mb"), "shares": arm.ask("shares")}
        return taken, known


def _another_round(rounds: int, elapsed: float, seconds: float) -> bool:
    return elapsed < seconds or rounds < 3 or (rounds < FEWEST_ROUNDS and elapsed < 2 * seconds)


def measure_case(names: list[str], size: Size, place: Place, seconds: float) -> dict[str, Any]:
    """All that is to be known of one case; `skipped` says why there is nothing."""
    device = torch.device(place.device)
    needed, free = needed_bytes(names, size), free_bytes(device)
    if needed > 0.9 * free:
        return {
            "skipped": f"needs about {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"
        }
    try:
        taken, known = measure(names, size, place, seconds, details=True)
    except (torch.OutOfMemoryError, SglmError) as error:
        return {"skipped": str(error).splitlines()[0]}
    floor_seconds = statistics.median(taken["floor"])
    arms_found = {}
    for name in names:
        found = arms_found[name] = _rates(taken[name], size, floor_seconds)
        if "real" in names and name != "real":
            # Round by round: what slows both down cancels.
            pairs = zip(taken[name], taken["real"], strict=True)
            found["over_real"] = round(statistics.median(a / b for a, b in pairs) - 1, 4)
        shares, memory_mb = known[name]["shares"], known[name]["memory_mb"]
        found["shares"] = {part: round(share, 4) for part, share in shares.items()}
        found["peak_memory_mb"] = round(memory_mb, 1)
    return {
        "rounds": len(taken["floor"]),
        "floor": _floor_rates(floor_seconds, size, place),
        "arms": arms_found,
    }


def _rates(times: list[float], size: Size, floor_seconds: float) -> dict[str, Any]:
    median = statistics.median(times)
    low, _, high = statistics.quantiles(times, method="inclusive")
    return {
        "tokens_per_s": round(size.tokens / median, 1),
        "tokens_per_s_quartiles": [round(size.tokens / each, 1) for each in (high, low)],
        "ms_per_window": round(1e3 * median, 4),
        "of_floor": round(floor_seconds / median, 4),
    }


def _floor_rates(floor_seconds: float, size: Size, place: Place) -> dict[str, float]:
    best = rates(place)
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
    """What the numbers depend on, beside the code."""
    on_cuda = place.device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "threads": torch.get_num_threads(),
        "precision": place.precision,
        "torch": torch.__version__,
    }


def benchmark(
    cases: list[Size],
    names: list[str],
    place: Place,
    seconds: float,
    out: Path | None,
) -> dict[str, Any]:
    """All cases; with `out`, written there after each of them, and read from there first.

    Raises:
        InputError: what is in `out` was measured elsewhere or otherwise.
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
