"""Are the Triton kernels worth having on this GPU? Each against its plain PyTorch reference.

    python -m scripts.benchmarks.kernels           a table
    python -m scripts.benchmarks.kernels --json    one JSON object

Both are captured in CUDA graphs, as a training step would be, so that the device's time is compared
and not Python's; they are replayed in turn, and the median over the rounds counts. The floor is the
bytes that a call must read and write, divided by the bandwidth of a large copy measured in the same
run; data that fits into the cache can be faster than that.

Shapes: B lanes, S coordinates of a lane's state, T time, H features.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from scripts.benchmarks.training.floor import elapsed_seconds
from sglm.dni import injection
from sglm.kernels import dropout, lstm
from sglm.kernels.lstm import LSTMWeights

Call = Callable[[], tuple[Tensor, ...]]

BATCHES = (20, 80)
LAYERS_HIDDEN = ((2, 256), (3, 1150))
STEPS = 70
LSTMS = ((20, 1150), (20, 650), (80, 1150), (80, 650), (20, 256), (80, 256))
CALLS_IN_GRAPH, ROUNDS = 10, 50
COPIED_BYTES = 2**30


@dataclass(frozen=True)
class Case:
    """One function at one size: the bytes it must move, and the two ways to compute it."""

    name: str
    size: dict[str, int]
    moved_bytes: int
    reference: Call
    kernel: Call


def injection_case(lanes: int, state: int, device: str) -> Case:
    """Returns the case of the injected gradient: a prediction with factor and trust bound."""
    from sglm.dni import injection_triton

    predicted_BS = torch.randn(lanes, state, device=device)
    unit, factor = torch.tensor(2.0, device=device), torch.tensor(0.5, device=device)
    longest = torch.tensor(2.0 * state**0.5, device=device)  # about half of the lanes are clipped

    def inject(of: Callable[..., tuple[Tensor, Tensor]]) -> Call:
        return lambda: of(predicted_BS, unit=unit, longest=longest, factor=factor)

    ways = injection.injected_gradient, injection_triton.injected_gradient
    size = {"B": lanes, "S": state}
    return Case("injection", size, 2 * predicted_BS.nbytes, *map(inject, ways))


def dropout_case(steps: int, lanes: int, features: int, device: str) -> Case:
    """Returns the case of dropout and penalty of outputs and their gradient, in bfloat16."""
    from sglm.kernels import dropout_triton

    shape, dtype = (steps, lanes, features), torch.bfloat16
    outputs_TBH = torch.randn(shape, device=device, dtype=dtype).requires_grad_()
    mask_BH = torch.full(shape[1:], 0.5, device=device, dtype=dtype).bernoulli_().mul_(2)
    upwards = torch.randn(shape, device=device, dtype=dtype), torch.ones((), device=device)

    def both(of: Callable[..., tuple[Tensor, Tensor]]) -> Call:
        def call() -> tuple[Tensor, ...]:
            found = of(outputs_TBH, mask_BH, activation=2.0, temporal=1.0)
            return (*found, *torch.autograd.grad(found, outputs_TBH, upwards))

        return call

    ways = dropout.regularized_dropout, dropout_triton.regularized_dropout
    size = {"T": steps, "B": lanes, "H": features}
    return Case("dropout", size, 5 * outputs_TBH.nbytes, *map(both, ways))


def lstm_case(
    steps: int, lanes: int, units: int, device: str, dtype: torch.dtype = torch.bfloat16
) -> Case:
    """Returns the case of an LSTM layer over a window, with all its gradients."""
    from sglm.kernels import lstm_triton

    def random(*shape: int) -> Tensor:
        scale = 1 / units**0.5 if shape[0] == 4 * units else 1.0
        return torch.randn(shape, device=device).mul_(scale).to(dtype)

    # The weights are in one block of memory, as cuDNN needs them.
    sizes = [4 * units**2, 4 * units**2, 4 * units, 4 * units]
    input_W, hidden_W, bias_4H, zero_4H = torch.split(random(sum(sizes)).div_(units**0.5), sizes)
    matrices = (input_W.view(-1, units), hidden_W.view(-1, units))
    weights = LSTMWeights(*matrices, bias_4H, zero_4H.zero_())
    into = (random(steps, lanes, units), random(lanes, units), random(lanes, units))
    wanted = [each.requires_grad_() for each in (*into, *weights[:3])]
    upwards = [random(steps, lanes, units), random(lanes, units), random(lanes, units)]

    def both(of: Callable[..., tuple[Tensor, ...]]) -> Call:
        def call() -> tuple[Tensor, ...]:
            found = of(*into, weights=weights, training=True)
            return (*found, *torch.autograd.grad(found, wanted, upwards))

        return call

    # Inputs, outputs, their gradients: once each; matrices are read, their gradients written.
    moved_bytes = 4 * into[0].nbytes + 2 * sum(each.nbytes for each in matrices)
    return Case(
        "lstm",
        {"T": steps, "B": lanes, "H": units},
        moved_bytes,
        *map(both, (lstm.lstm_layer, lstm_triton.lstm_layer)),
    )


def all_cases(device: str) -> Iterator[Case]:
    """Yields every function at every size, each made when its turn comes."""
    for lanes, hidden in LSTMS:
        yield lstm_case(STEPS, lanes, hidden, device)
    for lanes in BATCHES:
        for layers, hidden in LAYERS_HIDDEN:
            state = 2 * layers * hidden
            yield injection_case(lanes, state, device)
            yield dropout_case(STEPS, lanes, hidden, device)


def measure_case(case: Case, bandwidth: float, rounds: int = ROUNDS) -> dict[str, object]:
    """Times the two ways in turn, and compares their results.

    Args:
        case: The function and its size.
        bandwidth: Result of `bandwidth_bytes_per_us`.
        rounds: Number of rounds, whose median counts.
    """
    clocks = captured(case.reference), captured(case.kernel)
    times = [[clock() for clock in clocks] for _ in range(rounds)]
    reference_us, kernel_us = map(statistics.median, zip(*times, strict=True))
    return {
        "name": case.name,
        **case.size,
        "floor_us": case.moved_bytes / bandwidth,
        "reference_us": reference_us,
        "kernel_us": kernel_us,
        "speedup": reference_us / kernel_us,
        "difference": difference(case),
    }


def difference(case: Case) -> float:
    """Returns the kernel's largest deviation, relative to the largest value of each array."""
    largest = 0.0
    for found, expected in zip(case.kernel(), case.reference(), strict=True):
        found, expected = found.detach(), expected.detach()
        scale = expected.abs().max().clamp_min(1e-30)
        largest = max(largest, float((found - expected).abs().max() / scale))
    return largest


def captured(call: Call) -> Callable[[], float]:
    """Returns a function that times a call in microseconds: on a GPU in a graph, warmed up."""
    if not torch.cuda.is_available():
        return lambda: 1e6 * elapsed_seconds(call, torch.device("cpu"))
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # kernels are compiled and memory allocated before capture
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS_IN_GRAPH):
            call()
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def measure_us() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1000 / CALLS_IN_GRAPH

    return measure_us


def bandwidth_bytes_per_us() -> float:
    """Measures the bandwidth of a large copy, counting both reads and writes."""
    source = torch.randint(256, (COPIED_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    measure_us = captured(lambda: (target.copy_(source),))
    return 2 * COPIED_BYTES / statistics.median(measure_us() for _ in range(ROUNDS // 5))


def measure() -> dict[str, object]:
    """Times all cases, the two ways in turn."""
    bandwidth = bandwidth_bytes_per_us()
    rows = []
    for case in all_cases("cuda"):
        rows.append(measure_case(case, bandwidth))
        print(f"{case.name} {case.size}", file=sys.stderr)
    return {
        "device": torch.cuda.get_device_name(),
        "bandwidth_gb_per_s": bandwidth / 1000,
        "cases": rows,
    }


def table(found: dict[str, object]) -> str:
    """Returns the measurements as a table."""
    rows = found["cases"]
    assert isinstance(rows, list)
    lines = [f"{found['device']}, {found['bandwidth_gb_per_s']:.0f} GB/s; microseconds a call"]
    lines.append(f"{'':46}{'floor':>9}{'PyTorch':>9}{'kernel':>9}{'speedup':>9}{'difference':>12}")
    for row in rows:
        size = " ".join(f"{name}={row[name]}" for name in "TBSH" if name in row)
        lines.append(
            f"{row['name']:18}{size:28}{row['floor_us']:9.1f}{row['reference_us']:9.1f}"
            f"{row['kernel_us']:9.1f}{row['speedup']:9.2f}{row['difference']:12.1e}"
        )
    return "\n".join(lines)


def main() -> int:
    """Measures and prints; returns the exit code: 2 without a GPU or triton."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.kernels", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or find_spec("triton") is None:
        print(
            "scripts.benchmarks.kernels: needs a CUDA GPU and the package triton", file=sys.stderr
        )
        return 2
    found = measure()
    print(json.dumps(found) if arguments.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
