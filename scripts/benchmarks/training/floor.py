"""Lower bounds on the time of a step on this machine, at rates measured in the same run.

One is the time of its matrix products alone, the other that of the bytes that it must move to and
from memory.

Shapes: T time, B lanes, V vocabulary, H units, L layers.
"""

import statistics
import time
from collections.abc import Callable

import torch

from scripts.benchmarks.training.case import Place, Size
from sglm.model.linear import has_onednn, onednn_matmul

Step = Callable[[], object]
Timer = Callable[[], float]  # does something and returns the seconds that it took


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops(size: Size) -> int:
    """Returns the number of operations of a step's matrix products.

    A multiply-add is two operations, and the backward pass has two products of the same size for
    each product of the forward pass.
    """
    return 6 * size.tokens * size.parameters


def floor(size: Size, place: Place | None = None) -> Timer:
    """Returns a timer of a step's matrix products, each with the two of its backward pass.

    The recurrent products and their gradients with respect to the state depend on each other, step
    by step, with B rows each; the gradients with respect to the recurrent weights do not. Each
    product runs on existing tensors as often as a step needs it, by the faster of the available
    libraries; on a CPU its median counts.
    """
    H, V, B, T, L = size.hidden, size.vocab_size, size.batch, size.window, size.layers
    place = place or Place()
    device, dtype = torch.device(place.device), place.compute_dtype

    def products(rows: int, inputs: int, outputs: int) -> tuple[Step, Step, Step]:
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=device, dtype=dtype)

        values, gradients, weight = (
            random(rows, inputs),
            random(rows, outputs),
            random(outputs, inputs),
        )
        out_values, out_gradients = torch.empty_like(values), torch.empty_like(gradients)
        out_weight = torch.empty_like(weight)
        return (
            _fastest(values, weight.t(), out_gradients),
            _fastest(gradients, weight, out_values),
            _fastest(gradients.t(), values, out_weight),
        )

    forward, to_inputs, to_weights = products(T * B, H, 4 * H)
    recurrent_forward, to_state, _ = products(B, H, 4 * H)
    times_in_a_step = {forward: L, to_inputs: L, to_weights: 2 * L}
    times_in_a_step |= {recurrent_forward: T * L, to_state: T * L}
    times_in_a_step |= dict.fromkeys(products(T * B, H, V), 1)
    if device.type == "cuda":
        graphs = [_recorded(product, times) for product, times in times_in_a_step.items()]
        return lambda: sum(_event_seconds(graph.replay) for graph in graphs)

    def measure_seconds() -> float:
        return sum(
            times * statistics.median(_clock_seconds(product) for _ in range(times))
            for product, times in times_in_a_step.items()
        )

    return measure_seconds


def _fastest(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> Step:
    """Returns the product by torch's own library or by oneDNN, whichever is faster."""

    def own() -> object:
        return torch.mm(left, right, out=out)

    def other() -> object:
        return onednn_matmul(left, right)

    if left.is_cuda or not has_onednn():
        return own

    def median_seconds(step: Step) -> float:
        return statistics.median([_clock_seconds(step) for _ in range(7)][2:])

    return min((own, other), key=median_seconds)


def _recorded(product: Step, times: int) -> torch.cuda.CUDAGraph:
    """Records `times` runs as a CUDA graph, so that launches are not part of the floor."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        product()  # once outside, for cuBLAS to allocate its workspace and pick its kernel
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            product()
    return graph


def elapsed_seconds(step: Step, device: torch.device) -> float:
    """Times by events on a GPU, which also count its waiting for launches; else by the clock."""
    return _event_seconds(step) if device.type == "cuda" else _clock_seconds(step)


def set_tf32(allowed: bool) -> None:
    """Sets whether a GPU rounds float32 products, including those of LSTMs, to TF32."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def _clock_seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _event_seconds(step: Step) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def moved_bytes(size: Size, compute_bytes: int) -> int:
    """Returns the fewest bytes that an ordinary step without fused kernels moves.

    For each parameter, in float32: its gradient is written, and read for the norm; AdamW reads
    weight, gradient and two moments and writes all but the gradient; in the compute type it is read
    forwards and backwards. For each token and layer, in the compute type and in vectors of H:
    forwards the input is read, and gates, cell and hidden state are written (1 + 6); backwards all
    of that is read again (7), the gates' gradient is written (4) and read for two products (8), the
    input's gradient is written (1). For each logit: written, read by the softmax; its gradient
    written, and read for two products.
    """
    weights = size.parameters * (9 * 4 + 2 * compute_bytes)
    layers = size.tokens * size.layers * size.hidden * 27 * compute_bytes
    return weights + layers + size.tokens * size.vocab_size * 5 * compute_bytes


def rates(place: Place, *, side: int | None = None, length: int | None = None) -> dict[str, float]:
    """Measures the machine's best rates.

    They are the operations per second of large square products, and the bytes per second of a copy
    (reads and writes both count).

    Args:
        place: The device and the type.
        side: Side of the matrices. None: one that suits the device.
        length: Bytes of the copy. None: a number that suits the device.
    """
    device, dtype = torch.device(place.device), place.compute_dtype
    on_cuda = device.type == "cuda"
    side = side or (8192 if on_cuda else 1024)
    length = length or (2**30 if on_cuda else 2**26)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randint(256, (length,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def median_seconds(step: Step) -> float:
        return statistics.median([elapsed_seconds(step, device) for _ in range(12)][2:])

    multiply = median_seconds(_fastest(left, right, product))
    copy = median_seconds(lambda: target.copy_(source))
    return {"gemm_flops_per_s": 2 * side**3 / multiply, "copy_bytes_per_s": 2 * length / copy}
