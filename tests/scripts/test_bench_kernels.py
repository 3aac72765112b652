"""scripts/bench_kernels.py: what it says without a GPU, and what it measures with one.

That the two ways it compares are the same is a law in tests/kernels/laws.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.loading import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_kernels.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return load_script("bench_kernels")


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--json"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "GPU" in result.stderr


def test_the_table_shows_every_number(bench: ModuleType) -> None:
    times = {"floor_us": 1.0, "reference_us": 30.0, "kernel_us": 10.0, "speedup": 3.0}
    row = {"name": "injection", "B": 20, "S": 1024, **times, "difference": 1e-7}
    found = {"device": "some GPU", "bandwidth_gb_per_s": 4000.0, "cases": [row]}
    first, header, line = bench.table(found).splitlines()
    assert first.startswith("some GPU, 4000 GB/s")
    assert len(header) == len(line)
    assert line.split() == ["injection", "B=20", "S=1024", "1.0", "30.0", "10.0", "3.00", "1.0e-07"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_measures(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "BATCHES", (2,))
    monkeypatch.setattr(bench, "LAYERS_HIDDEN", ((1, 16),))
    monkeypatch.setattr(bench, "ROUNDS", 5)
    monkeypatch.setattr(bench, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(sys, "argv", ["bench_kernels", "--json"])
    assert bench.main() == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert len(cases) == 4
    for case in cases:
        assert case["kernel_us"] > 0
        assert case["difference"] < 3e-2  # bfloat16 among them, and TF32 where it is allowed
