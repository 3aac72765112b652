"""Runs: checkpoints, run.json, metrics and records of any content are used or refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglm.compare.grid import Cell
from sglm.compare.results import write_results, written_horizon
from sglm.compare.runs import Comparison, Record
from sglm.config import Config
from sglm.errors import InputError
from sglm.storage.checkpoint import load_checkpoint, save_checkpoint
from sglm.text.store import TokenStore
from sglm.train.log.metrics import drop_later_lines
from sglm.train.run_folder import RunFolder
from tests.fuzz.examples import (
    EXTREMES,
    altered,
    damages,
    dumped,
    examples,
    may_be_refused,
    one_of_these,
    spoilt,
)

FileOf = Callable[[str, bytes], Path]
STATE = {"weights": torch.arange(6.0), "books": {0: [1, None, "two"], "rate": 0.5}, "step": 7}
LINE = {"step": 4, "token_ppl": 9.5, "nll_per_token": 2.25, "split": "valid", "seconds": 1.0}
RECORD = {
    "finished": True,
    "seconds": 1.5,
    "peak_memory_mb": 100.0,
    "device": "cpu",
    "precision": "fp32",
}


@given(data=st.data(), forged=st.booleans())
@examples(100)
def test_any_checkpoint_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, forged: bool
) -> None:
    """Forged: with the checksum that belongs to it, where there is one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    save_checkpoint(folder, 7, STATE)
    latest = folder / "latest"
    path = data.draw(st.sampled_from(sorted(latest.iterdir())))
    before = path.read_bytes()
    after = data.draw(damages(before))
    path.write_bytes(after)
    sums = latest / "SHA256SUMS"
    if forged and sums.exists() and path != sums:
        old, new = (hashlib.sha256(raw).hexdigest() for raw in (before, after))
        sums.write_text(sums.read_text().replace(old, new))
    with may_be_refused(folder):
        loaded = load_checkpoint(folder)
        assert loaded is not None
        assert isinstance(loaded.step, int)


@pytest.mark.parametrize("name", ["/dev/zero", "../../secret", "latest"])
def test_latest_may_point_anywhere(tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path, 7, STATE)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to(name)
    try:
        loaded = load_checkpoint(tmp_path)
    except InputError:
        return
    assert loaded is not None
    assert loaded.step == 7


@pytest.fixture
def run(tmp_path: Path, tiny_config: Callable[..., Config], word_store: TokenStore) -> RunFolder:
    """A run that has just begun."""
    folder = RunFolder(tmp_path / "run")
    with folder.opened(tiny_config(), word_store, resume=True):
        pass
    return folder


@given(data=st.data())
@examples(80)
def test_any_identity_of_a_run_is_that_run_or_refused(
    run: RunFolder,
    tiny_config: Callable[..., Config],
    word_store: TokenStore,
    data: st.DataObject,
) -> None:
    whole = run.identity.read_bytes()
    try:
        run.identity.write_bytes(data.draw(damages(whole)))
        with may_be_refused(run.path), run.opened(tiny_config(), word_store, resume=True):
            pass
    finally:
        run.identity.write_bytes(whole)


METRICS = "".join(json.dumps({**LINE, "step": step}) + "\n" for step in (2, 4, 6)).encode()
LINES = st.lists(st.one_of(altered(LINE).map(dumped), one_of_these(EXTREMES)), max_size=4)


@given(raw=st.one_of(spoilt(METRICS), LINES.map(b"\n".join)))
@examples(100)
def test_what_is_kept_of_any_metrics_is_whole(file_of: FileOf, raw: bytes) -> None:
    path = file_of("metrics.jsonl", raw)
    drop_later_lines(path, 4)
    for line in path.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["step"] <= 4


@given(raw=damages(dumped(RECORD)))
@examples(100)
def test_any_record_is_read_or_refused(file_of: FileOf, raw: bytes) -> None:
    path = file_of("record.json", raw)
    with may_be_refused(path):
        record = Record.read(path)
        assert record is not None
        assert record.seconds >= 0
        assert (record.peak_memory_mb or 0) >= 0


@pytest.fixture
def comparison(tmp_path: Path, tiny_config: Callable[..., Config], word_store: TokenStore) -> Any:
    """Two runs of one variant whose records are those of finished ones."""
    base = tiny_config(schedule={"cycles": [6.0]})
    made = Comparison(base=base, store=word_store, out=tmp_path / "out", horizon=20)
    for seed in (0, 1):
        cell = Cell("bptt", seed)
        folder = RunFolder(made.folder(cell))
        with folder.opened(made.config(cell), word_store, resume=True):
            pass
        folder.metrics.write_bytes(METRICS)
        made.record_path(cell).write_bytes(dumped(RECORD))
    return made


@given(data=st.data())
@examples(60)
def test_any_metrics_are_compared_or_refused(comparison: Comparison, data: st.DataObject) -> None:
    folder = RunFolder(comparison.folder(Cell("bptt", 1)))
    folder.metrics.write_bytes(data.draw(st.one_of(spoilt(METRICS), LINES.map(b"\n".join))))
    with may_be_refused(folder.metrics):
        write_results(comparison, list(comparison.collect().values()))


def test_runs_that_were_not_evaluated_together_are_refused(comparison: Comparison) -> None:
    assert len(comparison.collect()) == 2
    folder = RunFolder(comparison.folder(Cell("bptt", 1)))
    folder.metrics.write_bytes(METRICS.split(b"\n", 1)[1])
    with pytest.raises(InputError, match="not at the steps of seed 0"):
        comparison.collect()


@given(raw=damages(dumped({"horizon": 20, "updates": 6})))
@examples(60)
def test_any_results_of_before_have_a_horizon_or_none(file_of: FileOf, raw: bytes) -> None:
    horizon = written_horizon(file_of("results.json", raw).parent)
    assert horizon is None or (type(horizon) is int and 0 <= horizon < 2**63)
