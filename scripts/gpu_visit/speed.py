"""Parts that time training steps, with `scripts.benchmarks.training`, each arm alone on the GPU."""

import platform
import statistics
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from scripts.benchmarks.training.case import Place, Size
from scripts.benchmarks.training.floor import elapsed_seconds, floor, set_tf32
from scripts.benchmarks.training.floor import rates as best_rates
from scripts.benchmarks.training.measure import floor_rates
from scripts.benchmarks.training.worker import Task, Worker
from scripts.gpu_visit.cells import Cell, Context, Found, free_memory
from sglm.kernels.choice import capability, chosen
from sglm.kernels.lstm import lstm_layer
from sglm.model import softmax_loss

ARM = "alternating adjoint"
# Blocks before timing with CUDA graphs: a graph is recorded at the fourth call, and long windows
# are read and learned from once per block.
RECORDED_AFTER = 5
# Number of windows that are timed in each turn, and the least number of rounds.
TIMED, FEWEST_ROUNDS = 40, 3
LARGE = Size(layers=3, hidden=1150, vocab_size=33_278, batch=20, window=70)
MEDIUM = replace(LARGE, layers=2, hidden=650)
PROFILED = 4  # windows
# An adjoint reads ahead once in many windows if they are long, and at each one if they are short.
TINY = Size(layers=1, hidden=8, vocab_size=40, batch=2, window=12)
SHORT = replace(TINY, window=3)
TURNS = ("real", "learning", "synthetic")


def bench_cases(rehearsing: bool) -> list[tuple[str, str, Size, Place]]:
    """Returns `(name, arm, size, place)`, the most important first.

    These are the large size, and then cases with one factor changed at a time.
    """
    bf16 = Place("cuda", "bf16")
    graph = replace(bf16, cuda_graph=True)
    cases = [
        ("large", ARM, LARGE, bf16),
        ("large graph", ARM, LARGE, graph),
        ("large plain", "plain", LARGE, bf16),
        # Tensor cores need sizes that are multiples of 8.
        ("H=1152 V=33280", ARM, replace(LARGE, hidden=1152, vocab_size=33_280), bf16),
        ("V=10k", ARM, replace(LARGE, vocab_size=10_000), bf16),
        ("V=10k graph", ARM, replace(LARGE, vocab_size=10_000), graph),
        ("medium", ARM, replace(MEDIUM, vocab_size=10_000), bf16),
        ("medium graph", ARM, replace(MEDIUM, vocab_size=10_000), graph),
        ("medium plain", "plain", replace(MEDIUM, vocab_size=10_000), bf16),
        ("fp16", ARM, LARGE, Place("cuda", "fp16")),
        ("fp32", ARM, LARGE, Place("cuda", "fp32")),
        ("fp32 TF32", ARM, LARGE, Place("cuda", "fp32", tf32=True)),
    ]
    for window in (35, 5):
        cases.append((f"T={window}", ARM, replace(LARGE, window=window), bf16))
        cases.append((f"T={window} graph", ARM, replace(LARGE, window=window), graph))
    for batch in (80, 256):
        cases.append((f"B={batch}", ARM, replace(LARGE, batch=batch), bf16))
        cases.append((f"B={batch} graph", ARM, replace(LARGE, batch=batch), graph))
    for window in (35, 5):
        size = replace(MEDIUM, vocab_size=10_000, window=window)
        cases.append((f"medium T={window}", ARM, size, bf16))
        cases.append((f"medium T={window} graph", ARM, size, graph))
    cases += [
        ("medium B=80", ARM, replace(MEDIUM, vocab_size=10_000, batch=80), bf16),
        ("medium V=33k", ARM, MEDIUM, bf16),
        ("medium fp32 TF32", ARM, MEDIUM, Place("cuda", "fp32", tf32=True)),
        ("recurrent", "alternating recurrent", LARGE, bf16),
        ("T=35 plain", "plain", replace(LARGE, window=35), bf16),
        ("B=80 plain", "plain", replace(LARGE, batch=80), bf16),
    ]
    if not rehearsing:
        return cases
    named = {name: (arm, size) for name, arm, size, _ in cases}
    chosen = {name: named[name] for name in ("large", "large plain", "T=5")}
    return [
        (name, arm, TINY if size.window > TINY.window else SHORT, Place("cpu"))
        for name, (arm, size) in chosen.items()
    ]


def rates(context: Context) -> Iterator[Cell]:
    """Yields cells of the machine's facts, and of its best rates in each type."""
    yield Cell(name="machine", measure=machine)
    small = {"side": 64, "length": 2**16} if context.rehearsing else {}
    for name in ("fp32",) if context.rehearsing else ("bf16", "fp16", "fp32", "TF32"):
        place = _place(context, name)
        yield Cell(name=name, measure=partial(_best, place, small))


def machine() -> Found:
    """Returns the facts of the machine on which the other numbers depend."""
    on_cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "capability": torch.cuda.get_device_capability() if on_cuda else None,
        "memory_gb": torch.cuda.mem_get_info()[1] / 1e9 if on_cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if on_cuda else None,  # type: ignore[no-untyped-call]
        "python": platform.python_version(),
    }


def _best(place: Place, small: dict[str, int]) -> Found:
    if place.device == "cuda":
        set_tf32(place.tf32)
    return best_rates(place, side=small.get("side"), length=small.get("length"))


def _place(context: Context, name: str) -> Place:
    if context.rehearsing:  # a CPU is slow in half precision
        return Place("cpu")
    return Place("cuda", "fp32", tf32=True) if name == "TF32" else Place("cuda", name)


def bench(context: Context) -> Iterator[Cell]:
    """Yields cells that time one learner's turns, or steps of the ordinary loop."""
    for name, arm, size, place in bench_cases(context.rehearsing):
        yield Cell(name=name, measure=partial(_steps, arm, size, place))


def _steps(arm: str, size: Size, place: Place) -> Found:
    facts = {"arm": arm, "size": asdict(size), "lstm": lstm_of(arm, size, place), **_told(place)}
    return facts | measure_turns(arm, size, place)


def lstm_of(arm: str, size: Size, place: Place) -> str:
    """Returns whose LSTM runs there: `own` (sglm's kernel), `cuDNN` or `torch`."""
    if arm == "plain" or place.device == "cpu" or place.precision == "fp32":
        return "cuDNN" if place.device == "cuda" else "torch"
    run: Any = chosen(lstm_layer)
    there = torch.empty(0, device=place.device)
    if run is lstm_layer or run.only_on not in (None, capability(there)):
        return "cuDNN"
    from sglm.kernels.lstm_triton import fits

    return "own" if fits(size.batch, size.hidden, there.device) else "cuDNN"


def _told(place: Place) -> Found:
    precision = "TF32" if place.tf32 else place.precision
    return {"precision": precision, "cuda_graph": place.cuda_graph}


def measure_turns(
    arm: str, size: Size, place: Place, *, turns: tuple[str, ...] = TURNS
) -> dict[str, Any]:
    """Measures milliseconds per window in each turn (medians over rounds), and peak memory.

    Args:
        arm: One of `arms.ARMS`; `plain` has one turn only.
        size, place: What is trained, and where.
        turns: Some of `arms.TURNS`; every round times each of them.
    """
    worker = Worker(Task(arm, size, place, torch.get_num_threads()))
    asked = [None] if arm == "plain" else list(turns)
    on_cuda = place.device == "cuda"
    block = worker.arm.block
    for turn in asked:
        records = place.cuda_graph and turn != "real"
        worker.seconds((RECORDED_AFTER if records else 1) * block, turn)
    times: dict[str, list[float]] = {turn or "plain": [] for turn in asked}
    peaks = dict.fromkeys(times, 0.0)
    for number in range(max(FEWEST_ROUNDS, TIMED // block) if on_cuda else 2):
        first = number % len(asked)
        for turn in (*asked[first:], *asked[:first]):
            if on_cuda:
                torch.cuda.reset_peak_memory_stats()
            times[turn or "plain"].append(1e3 * worker.seconds(block, turn))
            peaks[turn or "plain"] = max(peaks[turn or "plain"], worker.memory_mb())
    found: dict[str, Any] = {f"{turn}_ms": statistics.median(of) for turn, of in times.items()}
    found |= {f"{turn}_ms_spread": [min(of), max(of)] for turn, of in times.items()}
    return found | {f"{turn}_peak_mb": round(peak, 1) for turn, peak in peaks.items()}


def floors(context: Context) -> Iterator[Cell]:
    """Yields a cell for the floor of every size and type in `bench`, once each."""
    seen: list[tuple[Size, Place]] = []
    for name, _, size, place in bench_cases(context.rehearsing):
        place = replace(place, cuda_graph=False)
        if (size, place) not in seen:
            seen.append((size, place))
            yield Cell(name=name, measure=partial(_floor, size, place))


def _floor(size: Size, place: Place) -> Found:
    if place.device == "cuda":
        set_tf32(place.tf32)
    measure = floor(size, place)
    seconds = statistics.median(measure() for _ in range(5))
    small = {} if place.device == "cuda" else {"side": 64, "length": 2**16}
    best = best_rates(place, side=small.get("side"), length=small.get("length"))
    facts = {"size": asdict(size), **_told(place)}
    return facts | floor_rates(seconds, size, place, best=best)


def memory(context: Context) -> Iterator[Cell]:
    """Yields cells that compute the softmax loss from chunks of logits, or from all at once."""
    sizes = {"V=33k": LARGE, "V=10k": replace(LARGE, vocab_size=10_000)}
    if context.rehearsing:
        sizes = {"tiny": TINY}
    place = Place("cpu") if context.rehearsing else Place("cuda", "bf16")
    for name, size in sizes.items():
        for entries in (None, 2**25) if context.rehearsing else (None, 2**25, 2**23, 2**27):
            label = "all logits" if entries is None else f"2^{entries.bit_length() - 1} logits"
            yield Cell(name=f"{name}, {label}", measure=partial(_chunked, size, place, entries))


def _chunked(size: Size, place: Place, entries: int | None) -> Found:
    kept = dict(softmax_loss.CHUNK_ENTRIES)
    softmax_loss.CHUNK_ENTRIES.update(dict.fromkeys(kept, entries or 2**50))
    try:
        found = measure_turns("real", size, place, turns=("real",))
    finally:
        softmax_loss.CHUNK_ENTRIES.update(kept)
    return {"size": asdict(size), "logits": entries} | found


def profile(context: Context) -> Iterator[Cell]:
    """Yields cells that run torch's profiler over a few windows."""
    size = TINY if context.rehearsing else LARGE
    place = Place("cpu") if context.rehearsing else Place("cuda", "bf16")
    for turn in ("synthetic",) if context.rehearsing else ("real", "synthetic"):
        yield Cell(name=turn, measure=partial(_profiled, size, place, turn))


def _profiled(size: Size, place: Place, turn: str) -> Found:
    worker = Worker(Task(ARM, size, place, torch.get_num_threads()))
    device, block = torch.device(place.device), worker.arm.block
    worker.seconds(block, turn)
    plain = 1e3 * worker.seconds(block, turn)
    # Few windows, because the profiler needs seconds for the events of each. They include the
    # reading of the coming text, which is at the beginning of a stretch.
    block = PROFILED
    with torch.profiler.profile() as profiler:
        elapsed_seconds(lambda: worker.seconds(block, turn), device)
    on_cuda = device.type == "cuda"
    events = [
        (each.key[:80], each.self_device_time_total if on_cuda else each.self_cpu_time_total, each)
        for each in profiler.key_averages()
        if not on_cuda or is_of_the_device(each)
    ]
    events.sort(key=lambda each: -each[1])
    busy = sum(time for _, time, _ in events) / 1e3 / block
    top = [
        {"name": name, "ms": time / 1e3 / block, "calls": each.count / block}
        for name, time, each in events[:10]
    ]
    free_memory()
    return {"size": asdict(size), "ms": plain, "busy_ms": busy, "top": top}


def is_of_the_device(event: Any) -> bool:
    """Returns whether the event is a kernel or a copy, as torch's own table distinguishes them.

    torch's operations carry the time of their kernels too, which would then count twice.
    """
    annotation = getattr(event, "is_user_annotation", False)
    return event.device_type == DeviceType.CUDA and not annotation
