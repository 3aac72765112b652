"""Comparisons: small real ones, and such whose runs are written by hand, so that what they came to
is chosen and nothing is trained."""

import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm.compare.grid import compare, prepare
from sglm.compare.runs import Cell, Comparison, Record
from sglm.compare.variants import VARIANTS
from sglm.config import Config, parse_config
from sglm.optim.precision import precision_of
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


CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "model": {"layers": 1, "hidden": 8},
    "train": {"batch": 4, "window": 5, "evaluate_every_steps": 8},
    "schedule": {"unit": "steps", "cycles": [10.0, 10.0], "mode": "real"},
}
CONFIG = parse_config(VALUES, "test")


def run(
    store: TokenStore, out: Path, config: Config = CONFIG, **options: Any
) -> tuple[dict[str, Any], str]:
    """Results, and what was said meanwhile."""
    console = io.StringIO()
    chosen: dict[str, Any] = {"variants": ["bptt", "alternating"], "seeds": [0, 1], **options}
    precision = chosen.pop("precision", "fp32")
    made = compare(
        config,
        store,
        out,
        device=CPU,
        precision=precision_of(precision, CPU),
        console=console,
        **chosen,
    )
    return made, console.getvalue()


def fake_python(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the process of a run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
