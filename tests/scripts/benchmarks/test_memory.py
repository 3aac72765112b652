"""Predicted against measured memory: a real run's peak is what --dry-run said."""

from pathlib import Path

import pytest

from scripts.benchmarks import memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_prediction_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    # One layer of 400 units, chunked loss, adjoint: large against the libraries, quick to run.
    settings = f"model.layers=1 model.hidden=400 train.batch=8 train.window=10 {memory.BOTH}"
    monkeypatch.setitem(memory.CASES, "middling", (5000, settings))
    row = memory.compare("middling")
    # The issue asks for 15 %.
    assert row["ratio"] == pytest.approx(1, abs=0.15)
    # What the libraries take hides much: without them. Measured: 0.81 to 0.89; memory that is freed
    # comes back in pieces that do not fit, differently in every process.
    beyond = (row["predicted"] - row["base"]) / (row["measured"] - row["base"])
    assert beyond == pytest.approx(1, abs=0.3)
