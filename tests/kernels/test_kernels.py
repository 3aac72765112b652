"""Runs the kernels' laws under Triton's interpreter, compiles them for a GPU, and: who is chosen.

Triton decides on import whether it compiles or interprets; hence the processes.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sglm import kernels
from sglm.dni.synthesizer import RecurrentSynthesizer
from sglm.errors import ConfigError
from sglm.kernels.lstm import LSTMWeights
from sglm.kernels.recurrent import RecurrentWeights

HERE = Path(__file__).resolve().parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")


def run_python(arguments: list[str], folder: Path, **variables: str) -> str:
    """Its output; fails with it where the exit code is not zero."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**environment, **variables},
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


LAWS = ["-m", "pytest", "-p", "no:cacheprovider", str(HERE / "laws.py")]


@needs_triton
def test_laws_under_the_interpreter(tmp_path: Path) -> None:
    assert " passed" in run_python(LAWS, tmp_path, TRITON_INTERPRET="1", SGLM_LAWS_ON="cpu")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_laws_on_the_device(tmp_path: Path) -> None:
    variables = {
        "TRITON_INTERPRET": "0",
        "TRITON_DEFAULT_FP_FUSION": "1",  # what is the default; Triton 3.9 warns where it is unset
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the poison comes with deterministic algorithms
    }
    assert " passed" in run_python(LAWS, tmp_path, SGLM_LAWS_ON="cuda", **variables)


@needs_triton
def test_they_compile_for_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    """The interpreter takes things that the compiler refuses."""
    compiled = run_python([str(HERE / "compile.py")], tmp_path, TRITON_INTERPRET="0")
    assert compiled.split() == ["compiled"] * 14


def test_sglm_does_not_import_triton(tmp_path: Path) -> None:
    program = """
import sys
import sglm.lm, sglm.train.loop, sglm.kernels
print([name for name in sys.modules if name.split(".")[0] == "triton"])
"""
    # Nor where the kernels are asked for: there is no GPU's tensor yet.
    assert run_python(["-c", program], tmp_path, SGLM_TRITON="1").strip() == "[]"


class OnCuda(torch.Tensor):
    """Says that it lies on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def on_cuda(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(*shape, dtype=dtype).as_subclass(OnCuda)


def test_off_by_default_and_only_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.delenv("SGLM_TRITON", raising=False)
    assert not kernels.wanted(on_cuda(2))
    monkeypatch.setenv("SGLM_TRITON", "0")
    assert not kernels.wanted(on_cuda(2))
    monkeypatch.setenv("SGLM_TRITON", "1")
    assert kernels.wanted(on_cuda(2), on_cuda(3))
    assert not kernels.wanted(on_cuda(2), torch.zeros(2))
    assert not kernels.wanted(on_cuda(2, dtype=torch.float64))
    assert not kernels.wanted(on_cuda(0))


def test_asked_for_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    monkeypatch.setenv("SGLM_TRITON", "1")
    assert not kernels.wanted(torch.zeros(2))  # nothing was lost
    with pytest.raises(ConfigError, match="unset SGLM_TRITON"):
        kernels.wanted(on_cuda(2))


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "fits", "chosen"),
    [
        (torch.bfloat16, True, "kernel"),
        (torch.float16, True, "kernel"),
        (torch.bfloat16, False, "reference"),
        (torch.float32, True, "reference"),
    ],
)
def test_a_layer_on_the_device_is_the_kernels_where_it_fits(
    dtype: torch.dtype, fits: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglm.kernels import lstm, lstm_triton

    for name, module in (("kernel", lstm_triton), ("reference", lstm)):
        monkeypatch.setattr(module, "lstm_layer", lambda *_, name=name: name)
    monkeypatch.setattr(lstm_triton, "can_run", lambda lanes, units, device: fits)
    monkeypatch.setenv("SGLM_TRITON", "1")
    inputs_TBI, state_BH = on_cuda(3, 2, 5, dtype=dtype), on_cuda(2, 4, dtype=dtype)
    shapes = [(16, 5), (16, 4), (16,), (16,)]
    weights = LSTMWeights(*[on_cuda(*shape, dtype=dtype) for shape in shapes])
    assert kernels.lstm_layer(inputs_TBI, state_BH, state_BH, weights, True) == chosen
    monkeypatch.delenv("SGLM_TRITON")
    assert kernels.lstm_layer(inputs_TBI, state_BH, state_BH, weights, True) == "reference"


@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_synthesizer_is_the_reference_with_its_weights(auxiliary: bool) -> None:
    """And that is torch's own linear layers and GRU cell, bitwise."""
    torch.manual_seed(0)
    net = RecurrentSynthesizer(8, 6, auxiliary)
    torch.nn.init.normal_(net.heads.weight)
    state_BS, memory_MN = torch.randn(3, 8), torch.randn(24, 6)
    for context in (None, memory_MN):
        found = net(state_BS, context)
        expected_MN = net.cell(net.encoder(state_BS.reshape(-1, 1)), context)
        said_MK = net.heads(expected_MN)
        assert torch.equal(found.memory, expected_MN)
        assert not found.memory.requires_grad
        assert torch.equal(found.gradient_BS, said_MK[:, 0].view(3, 8))
        if auxiliary:
            assert torch.equal(found.next_gradient_BS, said_MK[:, 1].view(3, 8))


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_chosen_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from sglm.kernels import recurrent_triton

    calls = []
    kernel = recurrent_triton.recurrent_synthesizer

    def noted(
        x_M: torch.Tensor, memory_MN: torch.Tensor | None, weights: RecurrentWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(x_M)
        return kernel(x_M, memory_MN, weights)

    monkeypatch.setattr(recurrent_triton, "recurrent_synthesizer", noted)
    net = RecurrentSynthesizer(100, 50).cuda()
    torch.nn.init.normal_(net.heads.weight)
    state_BS = torch.randn(3, 100, device="cuda")
    monkeypatch.setenv("SGLM_TRITON", "0")
    expected = net(state_BS)
    assert not calls
    monkeypatch.setenv("SGLM_TRITON", "1")
    found = net(state_BS)
    assert len(calls) == 1
    # float32 sums over 50 units, or TF32 in the reference where it is allowed
    torch.testing.assert_close(found.gradient_BS, expected.gradient_BS, rtol=1e-2, atol=1e-2)
