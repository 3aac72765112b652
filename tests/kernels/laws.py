"""Every kernel is its reference: forward, backward, and nothing left unwritten.

Not collected by itself: Triton decides on import whether it compiles or interprets, so
`test_kernels.py` runs these in a process of their own, under the interpreter on the CPU, or
compiled on a GPU (`SGLM_LAWS_ON=cuda`).
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

from scripts.benchmarks import kernels as benchmark
from sglm.dni import injection, injection_triton
from sglm.kernels import dropout, dropout_triton, lstm, lstm_triton
from sglm.kernels.lstm import LSTMWeights

DEVICE = os.environ.get("SGLM_LAWS_ON", "cpu")
ROOT = Path(__file__).resolve().parents[2]


def assert_close(actual: Tensor, expected: Tensor, terms: int = 1) -> None:
    """Equal but for float32's rounding: of a few dozen operations, and of a sum of `terms`
    numbers, whose error grows like the root of their number, relative to the largest of them."""
    actual, expected = actual.detach(), expected.detach()
    tolerance = 2**-24 * (64 + 4 * terms**0.5)
    largest = max(float(expected.abs().max()), 1.0)
    assert actual.isfinite().all()
    assert float((actual.double() - expected.double()).abs().max()) <= tolerance * largest


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that torch gives out unwritten is full of NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    # Under every law here: what a kernel forgot to write, no comparison survives.
    with poisoned_memory():
        yield


def numbers(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * size
    return values.float().to(DEVICE)  # the same numbers in both precisions


@pytest.mark.parametrize("capped", [True, False])
@pytest.mark.parametrize(("lanes", "size"), [(1, 1), (1, 50), (3, 128), (5, 1000), (2, 6900)])
def test_injected_gradient(lanes: int, size: int, capped: bool) -> None:
    predicted_BS = numbers(lanes, size, seed=1) * numbers(lanes, 1, seed=2).exp()
    unit, factor = numbers(seed=4).exp(), numbers(seed=5).exp()
    longest = 1.2 * size**0.5 * unit if capped else None
    actual = injection_triton.injected_gradient(
        predicted_BS, unit=unit, longest=longest, factor=factor
    )
    expected = injection.injected_gradient(
        predicted_BS.double(),
        unit=unit.double(),
        longest=None if longest is None else longest.double(),
        factor=factor.double(),
    )
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, lanes * size)
        assert not one.requires_grad


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("capped", [True, False])
def test_a_lane_that_is_not_finite_is_given_nothing(poison: float, capped: bool) -> None:
    predicted_BS = torch.ones(2, 8, device=DEVICE)
    predicted_BS[0, 3] = poison
    one, half = torch.ones((), device=DEVICE), torch.full((), 0.5, device=DEVICE)
    longest = one * 1e3 if capped else None
    for ways in (injection, injection_triton):
        gradient_BS, _ = ways.injected_gradient(
            predicted_BS, unit=one, longest=longest, factor=half
        )
        assert (gradient_BS[0] == 0).all()
        assert (gradient_BS[1] == 0.5).all()


def test_nothing_is_injected_before_an_observation() -> None:
    zero, one = torch.zeros((), device=DEVICE), torch.ones((), device=DEVICE)
    gradient_BS, kept_B1 = injection_triton.injected_gradient(
        numbers(3, 20, seed=1), unit=one, longest=zero, factor=one
    )
    assert (gradient_BS == 0).all()
    assert (kept_B1 == 0).all()


# Steps around a program's eight, columns around its 256.
@pytest.mark.parametrize(
    ("steps", "lanes", "features"),
    [(1, 1, 1), (1, 2, 50), (2, 1, 256), (5, 3, 100), (8, 2, 128), (9, 1, 257), (70, 2, 50)],
)
@pytest.mark.parametrize(("activation", "temporal"), [(2.0, 1.0), (2.0, 0.0), (0.0, 1.0)])
def test_regularized_dropout(
    steps: int, lanes: int, features: int, activation: float, temporal: float
) -> None:
    penalties = {"activation": activation, "temporal": temporal}
    outputs_TBH = numbers(steps, lanes, features, seed=1).requires_grad_()
    mask_BH = (numbers(lanes, features, seed=2) > -0.3).float() / 0.6
    upwards_TBH = numbers(steps, lanes, features, seed=3)
    actual = dropout_triton.regularized_dropout(outputs_TBH, mask_BH, **penalties)
    upwards = (actual[0] * upwards_TBH).sum() + 5 * actual[1]
    (actual_gradient,) = torch.autograd.grad(upwards, outputs_TBH)

    exact_TBH = outputs_TBH.detach().double().requires_grad_()
    expected = dropout.regularized_dropout(exact_TBH, mask_BH.double(), **penalties)
    upwards = (expected[0] * upwards_TBH.double()).sum() + 5 * expected[1]
    (expected_gradient,) = torch.autograd.grad(upwards, exact_TBH)
    assert_close(actual[0], expected[0])
    assert_close(actual[1], expected[1], outputs_TBH.numel())
    assert_close(actual_gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_regularized_dropout_in_half_types(dtype: torch.dtype) -> None:
    outputs_TBH = numbers(11, 3, 100, seed=1).to(dtype).requires_grad_()
    mask_BH = (numbers(3, 100, seed=2) > -0.3).to(dtype) * 1.625
    actual = dropout_triton.regularized_dropout(outputs_TBH, mask_BH, activation=2.0, temporal=1.0)
    expected = dropout.regularized_dropout(outputs_TBH, mask_BH, activation=2.0, temporal=1.0)
    assert actual[0].dtype == dtype
    assert actual[1].dtype == torch.float32
    upwards = torch.ones_like(actual[0]), torch.tensor(5.0, device=DEVICE)
    (actual_gradient,) = torch.autograd.grad(actual, outputs_TBH, upwards)
    (expected_gradient,) = torch.autograd.grad(expected, outputs_TBH, upwards)
    assert actual_gradient.dtype == dtype
    digit = torch.finfo(dtype).eps
    if DEVICE == "cpu" and dtype == torch.bfloat16:
        # The interpreter cuts bfloat16 off where a device rounds it.
        torch.testing.assert_close(actual[0], expected[0], rtol=digit, atol=0)
        torch.testing.assert_close(actual[1], expected[1], rtol=2 * digit, atol=0)
    else:
        assert torch.equal(actual[0], expected[0])
        assert_close(actual[1], expected[1], outputs_TBH.numel())
    # The reference rounds its three terms by themselves; the kernel rounds their sum.
    torch.testing.assert_close(actual_gradient, expected_gradient, rtol=0, atol=4 * digit)


def layer_of(steps: int, lanes: int, inputs: int, units: int) -> tuple[list[Tensor], list[Tensor]]:
    """What goes into an LSTM layer, and gradients of what comes out."""
    wide, high = 1 / inputs**0.5, 1 / units**0.5  # pre-activations of order one
    shapes = [((steps, lanes, inputs), 1.0), ((lanes, units), 0.5), ((lanes, units), 1.0)]
    shapes += [((4 * units, inputs), wide), ((4 * units, units), high), ((4 * units,), 0.3)]
    into = [numbers(*shape, seed=seed, size=size) for seed, (shape, size) in enumerate(shapes)]
    out = [(steps, lanes, units), (lanes, units), (lanes, units)]
    return into, [numbers(*shape, seed=seed) for seed, shape in enumerate(out, 10)]


def run_layer(of: ModuleType, into: list[Tensor], upwards: list[Tensor]) -> list[Tensor]:
    """What comes out, and every gradient."""
    into = [each.detach().requires_grad_() for each in into]
    inputs_TBI, hidden_BH, cell_BH, *matrices = into
    weights = LSTMWeights(*matrices, torch.zeros_like(matrices[-1]))
    out = of.lstm_layer(inputs_TBI, hidden_BH, cell_BH, weights=weights, training=True)
    return [*out, *torch.autograd.grad(out, into, upwards)]


# One program (which passes every wait by itself), several with a last one that owns few units;
# several blocks of the sum; lanes around a group's, several groups; a single step.
@pytest.mark.parametrize(
    ("steps", "lanes", "inputs", "units"),
    [(5, 3, 7, 5), (3, 2, 5, 16), (3, 17, 20, 40), (4, 33, 9, 20), (1, 1, 3, 33), (2, 2, 8, 140)],
)
def test_lstm_layer(steps: int, lanes: int, inputs: int, units: int) -> None:
    into, upwards = layer_of(steps, lanes, inputs, units)
    actual = run_layer(lstm_triton, into, upwards)
    into, upwards = ([each.double().cpu() for each in tensors] for tensors in (into, upwards))
    for left, right in zip(actual, run_layer(lstm, into, upwards), strict=True):
        # Sums over gates, steps and lanes, one after the other.
        assert_close(left.cpu(), right, 16 * units * steps * lanes)


# The interpreter multiplies bfloat16 as if its bits were whole numbers.
@pytest.mark.parametrize("dtype", [torch.float16] + [torch.bfloat16] * (DEVICE != "cpu"))
def test_lstm_layer_in_half_types(dtype: torch.dtype) -> None:
    into, upwards = ([each.to(dtype) for each in tensors] for tensors in layer_of(4, 18, 20, 40))
    actual = run_layer(lstm_triton, into, upwards)
    into, upwards = ([each.double().cpu() for each in tensors] for tensors in (into, upwards))
    for left, right in zip(actual, run_layer(lstm, into, upwards), strict=True):
        assert left.dtype == dtype
        # A few steps one after the other, each of which rounds what it stores.
        right = right.detach()
        largest = max(1.0, float(right.abs().max()))
        difference = (left.detach().cpu().double() - right).abs().max()
        assert float(difference) <= 8 * torch.finfo(dtype).eps * largest


def run_as(program: int, executor: interpreter.GridExecutor, *arguments: Any, **named: Any) -> None:
    """Runs one program of the grid's first dimension, while others run the rest; and exits."""
    owners, groups = executor.grid
    builder = interpreter.interpreter_builder
    place, dimensions = builder.set_grid_idx, builder.set_grid_dim
    builder.set_grid_idx = lambda _, y, z: place(program, y, z)
    builder.set_grid_dim = lambda _, y, z: dimensions(owners, y, z)
    signal.alarm(60)  # should it wait for ever
    try:
        ONE_AFTER_THE_OTHER(
            interpreter.GridExecutor(executor.fn, executor.arg_names, (1, groups)),
            *arguments,
            **named,
        )
        os._exit(0)
    finally:
        os._exit(1)


ONE_AFTER_THE_OTHER = interpreter.GridExecutor.__call__


@pytest.mark.skipif(DEVICE != "cpu", reason="a device runs programs at once anyway")
def test_programs_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes in place of programs: they run at once and share memory, as on a device."""

    def at_once(executor: interpreter.GridExecutor, *arguments: Any, **named: Any) -> None:
        for each in arguments:
            if isinstance(each, Tensor):
                each.share_memory_()
        children = []
        for program in range(executor.grid[0]):
            children.append(os.fork())
            if not children[-1]:
                run_as(program, executor, *arguments, **named)
        assert not any(os.waitpid(child, 0)[1] for child in children)

    into, upwards = layer_of(6, 18, 5, 40)
    expected = run_layer(lstm_triton, into, upwards)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", at_once)
    monkeypatch.setattr(lstm_triton, "_one_by_one", lambda: False)
    for left, right in zip(run_layer(lstm_triton, into, upwards), expected, strict=True):
        assert torch.equal(left, right)


def test_a_layer_can_be_differentiated_once() -> None:
    into, upwards = layer_of(3, 2, 16, 16)
    into = [each.requires_grad_() for each in into]
    inputs_TBI, hidden_BH, cell_BH, *matrices = into
    weights = LSTMWeights(*matrices, torch.zeros_like(matrices[-1]))
    out = lstm_triton.lstm_layer(inputs_TBI, hidden_BH, cell_BH, weights=weights, training=True)
    first = torch.autograd.grad(out, into, upwards, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        torch.autograd.grad(first[0].sum(), into)


def test_a_layer_runs_where_its_programs_run_at_once() -> None:
    here = torch.device("cpu")  # as many as on a Hopper, nearly
    assert lstm_triton.fits(20, 1152, here)
    assert not lstm_triton.fits(20, 1153, here)
    assert lstm_triton.fits(96, 1152, here)
    assert not lstm_triton.fits(97, 1152, here)  # a fourth launch
    for lanes, units in [(1, 16), (20, 256), (33, 650), (80, 1150)]:
        owners, group, at_once = lstm_triton._split(lanes, units, 128)
        assert owners * at_once <= 128
        assert owners * lstm_triton.OWNED >= units
        assert at_once * group < lanes + group  # none without a lane
    assert lstm_triton._split(32, 256, 128) == (16, 16, 2)  # rather more groups at once
    assert lstm_triton._split(80, 1150, 128) == (72, 32, 1)  # three launches


def test_lanes_that_do_not_fit_come_in_later_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    into, upwards = layer_of(3, 40, 5, 40)
    expected = run_layer(lstm_triton, into, upwards)
    # As many programs as own the units: one group at once, of 32 lanes, and then one of 8.
    monkeypatch.setattr(lstm_triton, "_programs", lambda device: 3)
    for left, right in zip(run_layer(lstm_triton, into, upwards), expected, strict=True):
        assert_close(left, right.detach(), 16 * 40 * 3 * 40)  # as above


@pytest.mark.parametrize(
    ("make", "arguments", "tolerance"),
    [
        (benchmark.injection_case, (3, 40, DEVICE), 1e-5),
        # Half types have three decimal digits, and the interpreter does not round bfloat16.
        (benchmark.dropout_case, (9, 2, 40, DEVICE), 3e-2),
        (benchmark.lstm_case, (5, 2, 40, DEVICE, torch.float16), 3e-2),
    ],
)
def test_what_the_benchmark_compares_is_the_same(
    make: Callable[..., benchmark.Case], arguments: tuple[Any, ...], tolerance: float
) -> None:
    torch.manual_seed(0)
    assert benchmark.difference(make(*arguments)) < tolerance
