"""Runs the kernels' laws under Triton's interpreter, and compiles them for a GPU.

Triton decides on import whether it compiles or interprets; hence the processes.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

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
    assert compiled.split() == ["compiled"] * 10


def test_sglm_does_not_import_triton(tmp_path: Path) -> None:
    program = """
import sys
import sglm.lm, sglm.train.loop, sglm.kernels.choice
print([name for name in sys.modules if name.split(".")[0] == "triton"])
"""
    # Nor where the kernels are asked for: nothing is built yet.
    assert run_python(["-c", program], tmp_path, SGLM_TRITON="1").strip() == "[]"
