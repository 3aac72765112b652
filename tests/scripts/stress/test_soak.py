"""The soak test, a short time: nothing grows that should not. The long version is for a night."""

from pathlib import Path

import pytest

from scripts.stress import soak

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


def test_training_holds_nothing_back(tmp_path: Path) -> None:
    found = soak.verdict(soak.train(tmp_path, 3000))
    # Measured: 0.3 MB, of which TensorBoard's queue is the most. A tensor of this model kept at
    # every step is a kilobyte: 2 MB after the first third.
    assert found["rss_growth_mb"] < 1.5
    assert found["file_growth"] <= 0
    assert found["thread_growth"] <= 0
    assert found["tensorboard_files"] == 1
    assert found["run_entry_growth"] == 0
    # By plan: 13 numbers of some 40 bytes a log interval, of which there are 100 in 1000 steps, and
    # three norms of some 75 for the embedding and the layer.
    assert found["tensorboard_bytes_per_1000"] < 120_000


def test_scoring_holds_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So few words that the tokenizer's cache and oneDNN's kernels are soon all there.
    monkeypatch.setattr(soak, "WORDS", 300)
    samples = soak.score(tmp_path, 30_000)
    assert 29_000 < samples[-1].done <= 30_000
    found = soak.verdict(samples)
    # Measured: 9 MB, none of it after 24,000 lines. The scores, if they were kept, would be 40 MB.
    assert found["rss_growth_mb"] < 15
    assert found["file_growth"] <= 0
    assert found["thread_growth"] <= 0
