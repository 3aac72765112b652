"""Reference or kernel: chosen while something is built, and kept from then on.

A kernel is on by default where it was measured to be faster and Triton is there; it runs where the
tensors are on a GPU.
"""

import copy
import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sglm.dni.injection import injected_gradient
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import MLPSynthesizer
from sglm.errors import ConfigError
from sglm.kernels import choice
from sglm.kernels.choice import chosen, suitable
from sglm.kernels.dropout import regularized_dropout
from sglm.kernels.lstm import LSTMWeights, lstm_layer
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.state import LSTMState

ROOT = Path(__file__).resolve().parents[2]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")
every_function = pytest.mark.parametrize(
    "reference",
    [lstm_layer, regularized_dropout, injected_gradient],
    ids=lambda function: function.__name__,
)


def make_model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(
        ModelShape(vocab_size=7, layers=2, hidden=5, embedding=4, tied=True)
    ).eval()


def build(reference: Callable[..., object]) -> Callable[[], object]:
    """Something that calls the function, just built; to be called to call it once or more."""
    if reference is injected_gradient:
        estimator = LearnedEstimator(MLPSynthesizer(8, 6), learning_rate=1e-3, factor=0.5)
        return lambda: estimator.estimate(LSTMState.zeros(2, (4,)))
    model = make_model()
    if reference is regularized_dropout:
        return lambda: model.drop_and_penalize(torch.ones(3, 2, 4), 2.0, 1.0)
    return lambda: model.features(torch.zeros(3, 2, dtype=torch.long), model.start_state(2))


def kernel_module(reference: Callable[..., object]) -> Any:
    return import_module(f"{reference.__module__}_triton")


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels' names as they are called. They take everything, and do what references do."""
    calls: list[str] = []

    def noting(reference: Callable[..., object]) -> Callable[..., object]:
        def kernel(*args: object, **kwargs: object) -> object:
            calls.append(reference.__name__)
            return reference(*args, **kwargs)

        return kernel

    for each in (lstm_layer, regularized_dropout, injected_gradient):
        monkeypatch.setattr(kernel_module(each), each.__name__, noting(each))
        monkeypatch.setattr(kernel_module(each), "can_run", lambda *_, **__: True)
    return calls


@every_function
def test_the_reference_itself_where_the_kernels_are_off(
    reference: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLM_TRITON", "0")
    assert chosen(reference) is reference


@every_function
@pytest.mark.parametrize(
    ("speedup", "setting", "on"),
    [
        (1.5, None, True),
        (1.5, "", True),
        (1.5, "0", False),
        (0.9, None, False),
        (0.9, "", False),
        (0.9, "1", True),
        (None, None, False),
    ],
)
def test_a_kernel_measured_to_be_faster_is_the_default(
    reference: Callable[..., object],
    kernel_calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    speedup: float | None,
    setting: str | None,
    on: bool,
) -> None:
    name = choice.full_name(reference)
    measured = (
        None
        if speedup is None
        else choice.Measured(device="a GPU", capability=(9, 0), speedup=speedup)
    )
    entry = replace(choice.KERNELS[name], measured=measured)
    monkeypatch.setitem(choice.KERNELS, name, entry)
    monkeypatch.delenv("SGLM_TRITON", raising=False)
    if setting is not None:
        monkeypatch.setenv("SGLM_TRITON", setting)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choice, "_can_build", lambda: True)
    assert (chosen(reference) is not reference) is on
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (chosen(reference) is not reference) is (setting == "1")


@needs_triton
@every_function
@pytest.mark.parametrize(
    ("setting", "capability", "runs"),
    [("", (9, 0), True), ("", (8, 0), False), ("", None, False), ("1", (8, 0), True)],
)
def test_a_default_is_for_the_generation_that_was_measured(
    reference: Callable[..., object],
    kernel_calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    setting: str,
    capability: tuple[int, int] | None,
    runs: bool,
) -> None:
    monkeypatch.setenv("SGLM_TRITON", setting)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(choice, "_can_build", lambda: True)
    monkeypatch.setattr(choice, "capability", lambda tensor: capability)
    build(reference)()
    assert (reference.__name__ in kernel_calls) is runs


def test_a_default_is_no_reason_to_need_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    name = choice.full_name(lstm_layer)
    faster = choice.Kernel(measured=choice.Measured(device="a GPU", capability=(9, 0), speedup=9.0))
    monkeypatch.setitem(choice.KERNELS, name, faster)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.delenv("SGLM_TRITON", raising=False)
    assert chosen(lstm_layer) is lstm_layer


def test_a_default_is_no_reason_to_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("SGLM_TRITON", "CC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "which", lambda name: None)
    assert chosen(lstm_layer) is lstm_layer


def test_every_kernel_there_is_has_its_entry_and_none_measured_slower_is_kept() -> None:
    modules = [path.relative_to(ROOT) for path in (ROOT / "sglm").rglob("*_triton.py")]
    files = {".".join(path.with_suffix("").parts) for path in modules}
    assert {f"{name.rpartition('.')[0]}_triton" for name in choice.KERNELS} == files
    # One that is slower goes, with its module and its tests.
    assert all(
        kernel.measured is None or kernel.on_by_default for kernel in choice.KERNELS.values()
    )


@needs_triton
@every_function
def test_what_was_built_with_a_kernel_keeps_it(
    reference: Callable[..., object], kernel_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLM_TRITON", "1")
    call = build(reference)
    monkeypatch.setenv("SGLM_TRITON", "0")
    call()
    assert reference.__name__ in kernel_calls


@needs_triton
@every_function
def test_what_was_built_without_a_kernel_never_asks_again(
    reference: Callable[..., object], kernel_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLM_TRITON", "0")
    call = build(reference)
    monkeypatch.setenv("SGLM_TRITON", "1")
    call()
    assert not kernel_calls


@pytest.mark.parametrize("setting", ["true", "on", "2", " 1"])
def test_a_setting_that_is_neither_is_refused(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLM_TRITON", setting)
    with pytest.raises(ConfigError, match=f"SGLM_TRITON is '{setting}'; give 1 or 0"):
        build(injected_gradient)


@every_function
def test_asked_for_without_triton(
    reference: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGLM_TRITON", raising=False)
    call = build(reference)
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.setenv("SGLM_TRITON", "1")
    call()  # was built before
    with pytest.raises(ConfigError, match="unset SGLM_TRITON"):
        build(reference)


@needs_triton
@every_function
def test_a_kernel_leaves_the_rest_to_the_reference(
    reference: Callable[..., object], kernel_calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_module(reference), "can_run", lambda *_, **__: False)
    monkeypatch.setenv("SGLM_TRITON", "1")
    build(reference)()
    assert reference.__name__ not in kernel_calls


@needs_triton
@every_function
@pytest.mark.parametrize("setting", [None, "1"])
def test_no_kernel_runs_on_a_cpu(
    reference: Callable[..., object], setting: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_module(reference), reference.__name__, None)
    monkeypatch.delenv("SGLM_TRITON", raising=False)
    if setting is not None:
        monkeypatch.setenv("SGLM_TRITON", setting)
    build(reference)()


@needs_triton
@every_function
def test_a_kernel_takes_what_its_reference_takes(reference: Callable[..., object]) -> None:
    parameters = inspect.signature(reference).parameters
    module = kernel_module(reference)
    for function in (module.can_run, getattr(module, reference.__name__)):
        assert inspect.signature(function).parameters == parameters


@pytest.mark.parametrize("setting", ["0", pytest.param("1", marks=needs_triton)])
def test_a_choice_is_copied_and_pickled_and_no_part_of_the_weights(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLM_TRITON", "0")
    names = make_model().state_dict().keys()
    monkeypatch.setenv("SGLM_TRITON", setting)
    model = make_model()
    assert model.state_dict().keys() == names
    layer, inputs = model.layers[0], (torch.ones(3, 2, 4), torch.ones(2, 5), torch.ones(2, 5))
    more = {"weight_drop_rate": 0.0, "compute_dtype": torch.float32}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*inputs, **more)[0], layer(*inputs, **more)[0])


class OnCuda(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype).as_subclass(OnCuda)


def test_kernels_are_for_arrays_on_a_gpu_of_their_types() -> None:
    assert suitable(on_cuda(2), on_cuda(3))
    assert not suitable(on_cuda(2), torch.zeros(2))
    assert not suitable(on_cuda(2, dtype=torch.float64))
    assert not suitable(on_cuda(2, dtype=torch.float16))
    assert suitable(on_cuda(2, dtype=torch.float16), dtypes=(torch.float16,))
    assert not suitable(on_cuda(0))


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "fits", "runs"),
    [
        (torch.bfloat16, True, True),
        (torch.float16, True, True),
        (torch.bfloat16, False, False),
        (torch.float32, True, False),
    ],
)
def test_a_layer_on_the_device_is_the_kernels_where_it_fits(
    dtype: torch.dtype, fits: bool, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglm.kernels import lstm_triton

    monkeypatch.setattr(lstm_triton, "fits", lambda lanes, units, device: fits)
    inputs_TBI, state_BH = on_cuda(3, 2, 5, dtype=dtype), on_cuda(2, 4, dtype=dtype)
    shapes = [(16, 5), (16, 4), (16,), (16,)]
    weights = LSTMWeights(*[on_cuda(*shape, dtype=dtype) for shape in shapes])
    for training in (True, False):
        answer = lstm_triton.can_run(
            inputs_TBI, state_BH, state_BH, weights=weights, training=training
        )
        assert answer is runs
    on_cpu = torch.zeros(2, 4, dtype=dtype)
    assert not lstm_triton.can_run(inputs_TBI, state_BH, on_cpu, weights=weights, training=True)


@needs_triton
@pytest.mark.parametrize(("lanes", "runs"), [(192, True), (193, False)])
def test_a_layer_of_many_lanes_is_the_references(
    lanes: int, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which reads all of them at once, where the kernels would take launch after launch."""
    from sglm.kernels import lstm_triton

    monkeypatch.setattr(lstm_triton, "_programs", lambda device: 2)  # groups of 32 lanes
    half = torch.float16
    shapes = [(16, 5), (16, 4), (16,), (16,)]
    weights = LSTMWeights(*[on_cuda(*shape, dtype=half) for shape in shapes])
    state_BH, inputs_TBI = on_cuda(lanes, 4, dtype=half), on_cuda(3, lanes, 5, dtype=half)
    named = {"weights": weights, "training": True}
    assert lstm_triton.can_run(inputs_TBI, state_BH, state_BH, **named) is runs


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dropout_is_the_kernels_with_a_mask_and_a_penalty(dtype: torch.dtype) -> None:
    from sglm.kernels.dropout_triton import can_run

    outputs_TBH, mask_BH = on_cuda(3, 2, 4, dtype=dtype), on_cuda(2, 4, dtype=dtype)
    assert can_run(outputs_TBH, mask_BH, activation=2.0, temporal=0.0)
    assert can_run(outputs_TBH, mask_BH, activation=0.0, temporal=1.0)
    assert not can_run(outputs_TBH, mask_BH, activation=0.0, temporal=0.0)
    assert not can_run(outputs_TBH, None, activation=2.0, temporal=1.0)
    assert not can_run(outputs_TBH.double(), mask_BH, activation=2.0, temporal=1.0)
    assert not can_run(torch.zeros(3, 2, 4), mask_BH, activation=2.0, temporal=1.0)


@needs_triton
def test_an_injected_gradient_is_the_kernels_up_to_its_size() -> None:
    from sglm.dni.injection_triton import LARGEST, can_run

    one = on_cuda(1)[0]
    assert can_run(on_cuda(2, LARGEST), unit=one, longest=None, factor=one)
    assert can_run(on_cuda(2, LARGEST), unit=one, longest=one, factor=one)
    assert not can_run(on_cuda(2, LARGEST + 1), unit=one, longest=one, factor=one)
    assert not can_run(on_cuda(2, 8), unit=one, longest=torch.ones(()), factor=one)
    assert not can_run(torch.zeros(2, 8), unit=one, longest=one, factor=one)


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("setting", [None, "1"])
def test_chosen_on_the_device(setting: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglm.dni import injection_triton

    calls = []
    kernel = injection_triton.injected_gradient

    def noted(predicted_BS: Tensor, **scalars: Any) -> tuple[Tensor, Tensor]:
        calls.append(predicted_BS)
        return kernel(predicted_BS, **scalars)

    monkeypatch.setattr(injection_triton, "injected_gradient", noted)
    monkeypatch.delenv("SGLM_TRITON", raising=False)
    if setting is not None:
        monkeypatch.setenv("SGLM_TRITON", setting)
    predicted_BS, one = torch.randn(3, 100, device="cuda"), torch.ones((), device="cuda")
    scalars = {"unit": one, "longest": 9 * one, "factor": one / 2}
    actual = chosen(injected_gradient)(predicted_BS, **scalars)
    assert len(calls) == 1
    for found, expected in zip(actual, injected_gradient(predicted_BS, **scalars), strict=True):
        torch.testing.assert_close(found, expected)  # float32 rounding
