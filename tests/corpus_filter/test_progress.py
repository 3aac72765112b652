"""What is shown while a corpus is scored: the share that is done, and the time left."""

import io
import time
from pathlib import Path

import pytest

from sglm.corpus_filter import progress as module
from sglm.corpus_filter.engines import run_serially
from sglm.corpus_filter.job import Job, perform
from sglm.corpus_filter.plan import Settings, model_hash, plan_shards
from sglm.corpus_filter.progress import CorpusProgress
from sglm.errors import Stopped
from tests.tiny_models import save_lm


def test_files_count_by_their_size() -> None:
    shown = CorpusProgress(io.StringIO(), doing="scoring", sizes=[300, 100])
    shown.at(0, 0.5)
    assert shown.line(shown.started + 30) == "scoring  37.5 %  0:50 left  0/2 files"
    shown.at(0, 1.0)
    assert "1/2 files" in shown.line(shown.started + 30)


def make_job(tmp_path: Path) -> Job:
    run = save_lm("byte", tmp_path / "run")
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 9000)
    shards = plan_shards(
        [str(tmp_path / "a.jsonl")], tmp_path / "out", text_field="text", format=None
    )
    settings = Settings(
        model=model_hash(run),
        text_field="text",
        fields=("perplexity", "bits_per_byte"),
        prefix="",
        format=None,
        percentiles=None,
        bos=True,
        eos=False,
        precision="fp32",
    )
    return Job(shard=shards[0], settings=settings, run=str(run), device="cpu")


def test_what_is_read_ahead_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are read many at a time and then scored: it is the scored ones that count."""
    jobs = [make_job(tmp_path)]
    events: list[float] = []
    progress = CorpusProgress(io.StringIO(), doing="scoring", sizes=[1])
    monkeypatch.setattr(progress, "at", lambda number, share: events.append(share))
    assert [outcome.error for outcome in run_serially(jobs, progress)] == [None]
    assert events == sorted(events)
    assert len(events) > 3, "though all was read before anything was scored"
    assert events[0] < 0.6
    assert events[-2] < events[-1] == 1.0


def test_a_signal_that_ends_the_command_is_no_failure_of_a_file(tmp_path: Path) -> None:
    """SIGTERM is raised as `Stopped` wherever the work is; nothing goes on after it."""

    def stopped(share: float) -> None:
        raise Stopped("stopped", signal_number=15)

    with pytest.raises(Stopped):
        perform(make_job(tmp_path), stopped)
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


def test_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    console = io.StringIO()
    shown = module.CorpusProgress(console, doing="scoring", sizes=[1])
    for second in range(100):
        now[0] = float(second)
        shown.at(0, second / 100)
    assert console.getvalue().count("\n") == 3, "each half minute"
    assert console.getvalue().splitlines()[0] == "scoring  30.0 %  1:10 left  0/1 files"
