"""Scores a corpus: an engine does the missing files, and all files are summed up."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from sglm.corpus_filter import engines
from sglm.corpus_filter.job import FinishedFile, Job, Outcome, refuse_other_source
from sglm.corpus_filter.measures import BUCKETS, cutoffs, merged_histograms
from sglm.corpus_filter.plan import ERRORS_FILE, LOCK_FILE, Folder, Settings, Shard, open_folder
from sglm.corpus_filter.progress import CorpusProgress
from sglm.errors import InputError
from sglm.scoring.metrics import bits_per_byte, finite_or_none, perplexity
from sglm.storage.durable import locked, replace_text

# With fewer bytes of text, a process would take longer to start than to work.
BYTES_OF_A_PROCESS = 1 << 20

Engine = Callable[[Sequence[Job], CorpusProgress], Iterator[Outcome]]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The way in which the work is done, on which the results do not depend.

    Attributes:
        run: Path of the model.
        device: Type of the device that computes.
        processes: Number of processes on this machine. None: one for each CPU, if there is enough
            to do; one on a GPU.
        ray: Whether a Ray cluster does the work.
        console: Stream for progress.
    """

    run: Path
    device: str
    processes: int | None
    ray: bool
    console: TextIO


@dataclass(kw_only=True)
class Summary:
    """The summary of all files of a command, including those that were done before."""

    files: int
    already_done: int
    done: list[FinishedFile]
    failed: list[Outcome]
    cutoffs: tuple[float, float] | None
    tokens_now: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `sglm score --out DIR --json` prints."""
        nats, tokens = sum(each.nll_nats for each in self.done), self._sum("tokens")
        hidden = any(each.hides_bytes for each in self.done)
        return {
            "files": self.files,
            "already_done": self.already_done,
            "failed": [{"source": each.source, "error": each.error} for each in self.failed],
            "records": self._sum("records"),
            "tokens": tokens,
            "words": self._sum("words") or None,  # not counted if texts are ids
            "bytes": self._sum("bytes") or None,
            "unknown": self._sum("unknown"),
            "nll_nats": nats,
            "token_ppl": finite_or_none(perplexity(nats, tokens)),
            "bits_per_byte": finite_or_none(bits_per_byte(nats, self._sum("bytes"), hidden)),
            "buckets": self.buckets(),
            "cutoffs": self.cutoffs,
            "seconds": round(self.seconds, 3),
            "tokens_scored": self.tokens_now,
        }

    def _sum(self, name: str) -> int:
        return sum(getattr(each, name) for each in self.done)

    def buckets(self) -> dict[str, int] | None:
        """Returns the number of records in each bucket; those without a perplexity are in none."""
        if all(each.buckets is None for each in self.done):
            return None
        counted: Counter[str] = Counter()
        for each in self.done:
            counted.update(each.buckets or {})
        return {name: counted[name] for name in BUCKETS}


def score_corpus(shards: Sequence[Shard], settings: Settings, execution: Execution) -> Summary:
    """Writes the result of every shard that has none yet.

    Raises:
        InputError: The folder holds results of other settings or sources, or something else, or
            another process works in it.
        SglmError: A process was killed. (Other failures are in the summary.)
    """
    start, out = time.monotonic(), Path(shards[0].out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file, not a folder; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / LOCK_FILE):
        folder = open_folder(out, settings)
        for shard in shards:
            refuse_other_source(shard)
        before = {shard.name for shard in shards if _is_finished(shard, settings)}
        outcomes = _perform(
            [_job(s, settings, execution) for s in shards if FinishedFile.read(s) is None],
            execution,
            doing="scoring",
        )
        if settings.percentiles is not None:
            outcomes += _give_buckets(shards, folder, execution)
        failed = sorted((each for each in outcomes if each.error), key=lambda each: each.source)
        _write_errors(out / ERRORS_FILE, failed)
        done = [FinishedFile.read(shard) for shard in shards if _is_finished(shard, settings)]
    return Summary(
        files=len(shards),
        already_done=len(before),
        done=[each for each in done if each is not None],
        failed=failed,
        cutoffs=folder.cutoffs,
        tokens_now=sum(each.tokens for each in outcomes),
        seconds=time.monotonic() - start,
    )


def _job(shard: Shard, settings: Settings, execution: Execution, **others: Any) -> Job:
    run, device = str(execution.run), execution.device
    return Job(shard=shard, settings=settings, run=run, device=device, **others)


def _is_finished(shard: Shard, settings: Settings) -> bool:
    waits = settings.percentiles is not None and shard.unbucketed_path.exists()
    return not waits and FinishedFile.read(shard) is not None


def _give_buckets(shards: Sequence[Shard], folder: Folder, execution: Execution) -> list[Outcome]:
    """Makes the second pass. Its first run computes the bounds from all files scored so far."""
    assert folder.settings.percentiles is not None
    scored = [shard for shard in shards if shard.unbucketed_path.exists()]
    known = [done.histogram for shard in scored if (done := FinishedFile.read(shard)) is not None]
    if not known:
        return []
    histogram = merged_histograms(known)
    bounds = folder.cutoffs or cutoffs(histogram, folder.settings.percentiles)
    if histogram and folder.cutoffs is None:  # without any text, later records would all be tail
        folder.cutoffs = bounds
        folder.save()
    jobs = [_job(shard, folder.settings, execution, bounds=bounds) for shard in scored]
    return _perform(jobs, execution, doing="buckets")


def _perform(jobs: Sequence[Job], execution: Execution, *, doing: str) -> list[Outcome]:
    if not jobs:
        return []
    # The largest first, so that no process starts a large file at the end.
    jobs = sorted(jobs, key=lambda job: -job.shard.size())
    sizes = [job.shard.size() for job in jobs]
    progress = CorpusProgress(execution.console, doing=doing, sizes=sizes)
    try:
        return list(_engine(execution, sizes)(jobs, progress))
    finally:
        progress.close()


def _engine(execution: Execution, sizes: Sequence[int]) -> Engine:
    if execution.ray:
        return engines.run_on_ray
    processes = execution.processes
    if processes is None and execution.device == "cuda":
        processes = 1
    if processes is None:
        processes = min(engines.usable_cpus(), 1 + sum(sizes) // BYTES_OF_A_PROCESS)
    processes = min(processes, len(sizes))
    return (
        engines.run_serially
        if processes == 1
        else partial(engines.run_in_processes, processes=processes)
    )


def _write_errors(path: Path, failed: Sequence[Outcome]) -> None:
    if not failed:
        path.unlink(missing_ok=True)
        return
    errors = [{"source": each.source, "error": each.error} for each in failed]
    replace_text(path, json.dumps(errors, indent=2) + "\n")
