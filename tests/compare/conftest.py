"""Comparisons: small real ones, and such whose runs are written by hand, so that their results are
chosen and nothing is trained."""

import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch

from sglm.compare.comparison import compare, prepare
from sglm.compare.grid import Cell, Grid
from sglm.compare.process import Execution
from sglm.compare.runs import Comparison, Record
from sglm.config import Config, parse_config
from sglm.optim.precision import unchecked_precision
from sglm.text.store import TokenStore
from sglm.train.run_folder import RunFolder


@pytest.fixture
def make_comparison(
    tiny_config: Callable[..., Config], word_store: TokenStore, tmp_path: Path
) -> Callable[..., Comparison]:
    """A comparison of any variants in `tmp_path / out`; keyword arguments change sections."""

    def make(out: str = "out", **sections: dict[str, object]) -> Comparison:
        config = tiny_config(**sections)
        return prepare(config, word_store, tmp_path / out, variants=("bptt", "alternating"))

    return make


def write_run(
    comparison: Comparison,
    cell: Cell,
    *token_ppl: float,
    seconds: float = 10.0,
    memory: float | None = 100.0,
    precision: str = "fp32",
    device: str = "cpu",
    waited: float | None = None,
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
    Record(
        finished=True,
        seconds=seconds,
        peak_memory_mb=memory,
        device=device,
        precision=precision,
        waited=waited,
    ).write(comparison.record_path(cell))


CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "model": {"layers": 1, "hidden": 8},
    "train": {"batch": 4, "window": 5, "evaluate_every_steps": 8},
    "schedule": {"unit": "steps", "cycles": [10.0, 10.0], "mode": "real"},
}
CONFIG = parse_config(VALUES, "test")


def compare_into(
    out: Path,
    store: TokenStore,
    config: Config = CONFIG,
    *,
    console: TextIO,
    variants: Sequence[str] = ("bptt", "alternating"),
    seeds: Sequence[int] = (0, 1),
    shard: tuple[int, int] = (1, 1),
    precision: str = "fp32",
    stop_signal: Callable[[], int | None] = lambda: None,
    horizon: int | None = None,
) -> dict[str, Any]:
    """A comparison on the CPU."""
    grid = Grid(variants=tuple(variants), seeds=tuple(seeds), shard=shard)
    return compare(
        prepare(config, store, out, variants=grid.variants, horizon=horizon),
        grid=grid,
        execution=Execution(precision=unchecked_precision(precision, CPU), stop_signal=stop_signal),
        console=console,
    )


def run(
    store: TokenStore, out: Path, config: Config = CONFIG, **options: Any
) -> tuple[dict[str, Any], str]:
    """Results, and what was printed meanwhile."""
    console = io.StringIO()
    return compare_into(out, store, config, console=console, **options), console.getvalue()


def fake_python(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the process of a run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
