"""The part `kernels`: every Triton kernel against its reference, in value and time."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from scripts.benchmarks import kernels as benchmark
from scripts.benchmarks.kernels import Case
from scripts.gpu_visit.cells import Cell, Context, Found


def kernels(context: Context) -> Iterator[Cell]:
    """Yields a cell for each function and size. A rehearsal times the reference as the kernel."""
    cases = rehearsed_cases() if context.rehearsing else benchmark.all_cases("cuda")
    # The rate is measured once, with the first case.
    bandwidth: list[float] = []
    for case in cases:
        size = " ".join(f"{name}={value}" for name, value in case.size.items())
        yield Cell(name=f"{case.name} {size}", measure=partial(_measure, case, bandwidth))


def rehearsed_cases() -> Iterator[Case]:
    """Yields one tiny case of every function, on the CPU."""
    cases = [
        benchmark.injection_case(2, 4, "cpu"),
        benchmark.dropout_case(3, 2, 4, "cpu"),
        benchmark.lstm_case(3, 2, 4, "cpu"),
    ]
    for case in cases:
        yield replace(case, kernel=case.reference)


def _measure(case: Case, bandwidth: list[float]) -> Found:
    if not bandwidth:
        bandwidth.append(benchmark.bandwidth_bytes_per_us() if torch.cuda.is_available() else 1e4)
    return dict(benchmark.measure_case(case, bandwidth[0]))
