"""The kernels' benchmark: what it says without a GPU, and what it measures with one.

That the two ways it compares are the same is a law in tests/kernels/laws.py.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from scripts import ROOT
from scripts.benchmarks import kernels


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.kernels", "--json"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "GPU" in result.stderr


def test_the_table_shows_every_number() -> None:
    times = {"floor_us": 1.0, "reference_us": 30.0, "kernel_us": 10.0, "speedup": 3.0}
    row = {"name": "injection", "B": 20, "S": 1024, **times, "difference": 1e-7}
    found = {"device": "some GPU", "bandwidth_gb_per_s": 4000.0, "cases": [row]}
    first, header, line = kernels.table(found).splitlines()
    assert first.startswith("some GPU, 4000 GB/s")
    assert len(header) == len(line)
    assert line.split() == ["injection", "B=20", "S=1024", "1.0", "30.0", "10.0", "3.00", "1.0e-07"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_measures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels, "BATCHES", (2,))
    monkeypatch.setattr(kernels, "LAYERS_HIDDEN", ((1, 16),))
    monkeypatch.setattr(kernels, "LSTMS", ((2, 16),))
    monkeypatch.setattr(kernels, "ROUNDS", 5)
    monkeypatch.setattr(kernels, "COPIED_BYTES", 2**20)
    monkeypatch.setattr(sys, "argv", ["kernels", "--json"])
    assert kernels.main() == 0
    cases = json.loads(capsys.readouterr().out)["cases"]
    assert len(cases) == 3
    for case in cases:
        assert case["kernel_us"] > 0
        assert case["difference"] < 3e-2  # bfloat16 among them, and TF32 where it is allowed
