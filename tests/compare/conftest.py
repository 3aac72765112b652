"""Comparisons whose runs are written by hand: what they came to is chosen, nothing is trained."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from sglm.compare.grid import prepare
from sglm.compare.runs import Cell, Comparison, Record
from sglm.compare.variants import VARIANTS
from sglm.config import Config
from sglm.text.store import TokenStore
from sglm.train.run_folder import RunFolder


@pytest.fixture
def make_comparison(
    tiny_config: Callable[..., Config], word_store: TokenStore, tmp_path: Path
) -> Callable[..., Comparison]:
    """A comparison of any variants in `tmp_path / out`; keyword arguments change sections."""

    def make(out: str = "out", **sections: dict[str, object]) -> Comparison:
        config = tiny_config(**sections)
        return prepare(config, word_store, tmp_path / out, tuple(VARIANTS), None)

    return make


def write_run(
    comparison: Comparison,
    cell: Cell,
    *token_ppl: float,
    seconds: float = 10.0,
    memory: float | None = 100.0,
    precision: str = "fp32",
    device: str = "cpu",
) -> None:
    """A finished run with these validation perplexities, evenly over its updates."""
    folder = RunFolder(comparison.folder(cell))
    with folder.opened(comparison.config(cell), comparison.store, resume=True):
        pass
    lines = [
        {
            "step": comparison.updates * number // len(token_ppl),
            "token_ppl": value if math.isfinite(value) else None,
            "nll_per_token": math.log(value) if math.isfinite(value) else None,
        }
        for number, value in enumerate(token_ppl, start=1)
    ]
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Record(True, seconds, memory, device, precision).write(comparison.record_path(cell))
