"""The work on one file, in any process: adding the scores, or the buckets.

A result gets its name when it is complete, and its record is written before that: a job that was
interrupted anywhere is repeated as a whole, and a finished job is never repeated.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path

from sglm.corpus_filter.measures import BUCKET, PERPLEXITY, added_fields, bin_of, bucket
from sglm.corpus_filter.plan import Settings, Shard, model_hash
from sglm.corpus_filter.reading import Progress, Records, read_records, read_values
from sglm.corpus_filter.writing import open_writer, result_schema
from sglm.errors import InputError, SglmError, Stopped, as_sglm_error
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.totals import TextTotals, text_totals
from sglm.storage.durable import replace_file, replace_text
from sglm.storage.untrusted import read_json
from sglm.text.user_text import TextError

# Characters of texts that are scored together: enough to find texts of similar lengths among them,
# so that few steps are wasted (2 % of them, for documents of 20 to 2,000 tokens).
GROUP_CHARACTERS = 1 << 21
# The progress of a file whose records are all scored, but which is not complete yet.
_UNFINISHED = 0.999


@dataclass(kw_only=True)
class FinishedFile:
    """The record of a finished file."""

    version: list[int]
    """The version of its source (`Shard.version`)."""
    source: str = ""
    """The absolute path of the source."""
    records: int = 0
    tokens: int = 0
    words: int = 0
    bytes: int = 0
    unknown: int = 0
    nll_nats: float = 0.0
    hides_bytes: bool = False
    """Whether `nll_nats` lacks some of the bytes (`TextTotals.has_unscored_bytes`)."""
    histogram: dict[str, int] = field(default_factory=dict)
    """The number of records in each bin of perplexity (`bin_of`), if there will be buckets."""
    buckets: dict[str, int] | None = None
    """The number of records in each bucket; None until the buckets are added."""

    def count(self, totals: TextTotals, *, perplexity: float | None, histogram: bool) -> None:
        """Adds one record of the corpus to the counts."""
        self.records += 1
        self.tokens += totals.tokens
        self.words += totals.words or 0
        self.bytes += totals.bytes or 0
        self.unknown += totals.unknown
        self.nll_nats += totals.nll_nats
        self.hides_bytes = self.hides_bytes or totals.has_unscored_bytes
        if histogram and perplexity is not None:
            place = str(bin_of(perplexity))
            self.histogram[place] = self.histogram.get(place, 0) + 1

    def write(self, path: Path) -> None:
        """Writes it as JSON, under a temporary name first."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, shard: Shard) -> "FinishedFile | None":
        """Reads the record of a shard; None if it is not finished or its source has changed."""
        if not (shard.result_path.exists() or shard.unbucketed_path.exists()):
            return None
        try:
            done = cls(**read_json(shard.record_path))
        except (OSError, ValueError, TypeError, InputError):
            return None
        return done if done.version == shard.version() else None


def refuse_other_source(shard: Shard) -> None:
    """Refuses to replace the result of another source.

    Raises:
        InputError: The shard's result was made from another file, which still exists.
    """
    try:
        before = read_json(shard.record_path)["source"]
    except (OSError, ValueError, TypeError, KeyError, InputError):
        return
    if before and os.path.exists(before) and not os.path.samefile(before, shard.source):
        raise InputError(
            f"{shard.result_path} was made from {before}, and {shard.source} would replace it;"
            " give another --out"
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file to score, or a scored file that gets its buckets: plain values for another process.

    Attributes:
        shard: The file.
        settings: The settings of the results.
        run: Path of the model.
        device: Type of the device that computes.
        bounds: Perplexities that separate the buckets. None: the file is to be scored.
    """

    shard: Shard
    settings: Settings
    run: str
    device: str
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a job: `error` is None if it was done."""

    source: str
    error: str | None
    tokens: int
    seconds: float


def perform(job: Job, progress: Progress = lambda share: None) -> Outcome:
    """Does a job. Its failures are part of the outcome, so that the other jobs continue.

    Raises:
        Stopped: A signal ended the job, which is no failure of the file.
    """
    start, tokens, error = time.monotonic(), 0, None
    try:
        with _arrow_errors(job.shard.source):
            tokens = score_file(job, progress) if job.bounds is None else bucket_file(job, progress)
    except Stopped:
        raise
    except SglmError as failure:
        error = str(failure)
    except (OSError, MemoryError, RuntimeError) as failure:
        translated = as_sglm_error(failure)
        if translated is None:
            raise
        error = f"{job.shard.source}: {translated}"
    return Outcome(
        source=job.shard.source, error=error, tokens=tokens, seconds=time.monotonic() - start
    )


@contextmanager
def _arrow_errors(source: str) -> Iterator[None]:
    """Translates the errors of pyarrow while writing; reading translates its own."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "pyarrow":
            raise
        message = str(error).strip().splitlines()[0]
        raise InputError(
            f"{source}: cannot be written as parquet ({message}); give --format jsonl"
        ) from error


def score_file(job: Job, progress: Progress) -> int:
    """Writes the records of a file with their scores, and returns the number of tokens scored.

    Raises:
        InputError: The file is damaged or changed, a record lacks the field of the text, or the
            model has changed.
    """
    shard, settings = job.shard, job.settings
    source = Path(shard.source)
    target = shard.result_path if settings.percentiles is None else shard.unbucketed_path
    lm = scorer(job.run, model=settings.model, device=job.device, precision=settings.precision)
    done = FinishedFile(version=shard.version(), source=os.path.abspath(shard.source))

    def write(aside: Path) -> None:
        read = partial(read_records, source, settings.text_field)
        later = [] if settings.percentiles is None else [settings.prefix + BUCKET]
        schema = result_schema(
            *(source, read(lambda share: None), target),
            text_field=settings.text_field,
            columns={settings.prefix + name: name for name in settings.fields},
            later=later,
        )
        with open_writer(aside, target, source=source, schema=schema, later=later) as writer:
            for some, totals in _scored(lm, read, settings, source=source, progress=progress):
                fields = [added_fields(each, settings.fields, settings.prefix) for each in totals]
                writer.write(some, fields)
                for each, values in zip(totals, fields, strict=True):
                    done.count(
                        each,
                        perplexity=values.get(settings.prefix + PERPLEXITY),
                        histogram=settings.percentiles is not None,
                    )
        if shard.version() != done.version:
            raise InputError(
                f"{source}: was written to while it was read; run the same command again"
            )
        done.write(shard.record_path)

    for old in (shard.result_path, shard.unbucketed_path):  # from a source that has changed since
        old.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, write)
    return done.tokens


def _scored(
    lm: LanguageModel,
    read: Callable[[Progress], Iterator[Records]],
    settings: Settings,
    *,
    source: Path,
    progress: Progress,
) -> Iterator[tuple[Records, list[TextTotals]]]:
    """Yields all records and their scores."""
    latest = deque([0.0], maxlen=1)  # the share that has been read, ahead of the scoring
    before, records = 0.0, 0

    def report(share: float) -> None:
        progress(_UNFINISHED * (before + share * (latest[0] - before)))

    for group in _groups(read(latest.append)):
        texts = [text for some in group for text in some.texts]
        try:
            totals = text_totals(
                lm.predictor,
                lm.tokenizer,
                texts,
                bos=settings.bos,
                eos=settings.eos,
                bos_id=lm.bos_id,
                progress=report,
            )
        except TextError as error:
            raise InputError(
                f"{source}, record {records + error.number}: {error.problem}"
            ) from error
        records += len(texts)
        before, start = latest[0], 0
        for some in group:
            yield some, totals[start : start + len(some.texts)]
            start += len(some.texts)


def _groups(records: Iterator[Records]) -> Iterator[list[Records]]:
    """Yields groups of records with about `GROUP_CHARACTERS` together."""
    group: list[Records] = []
    characters = 0
    for some in records:
        group.append(some)
        characters += sum(len(text) + 1 for text in some.texts)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


@lru_cache(maxsize=1)
def scorer(run: str, *, model: str, device: str, precision: str) -> LanguageModel:
    """Loads the model, once in each process.

    Raises:
        InputError: There is no model, or its hash is not `model`.
    """
    import torch

    lm = load(run, device)
    if model_hash(Path(run)) != model:
        raise InputError(f"{run}: the model has changed since the command began; give a copy of it")
    if precision == "bf16":
        predictor = NetworkPredictor(lm.model, compute_dtype=torch.bfloat16)
        return LanguageModel(predictor, tokenizer=lm.tokenizer, name=lm.name, bos_id=lm.bos_id)
    return lm


def bucket_file(job: Job, progress: Progress) -> int:
    """Adds its bucket to every record of a scored file; returns 0, the number of tokens scored.

    Raises:
        InputError: The source has changed since it was scored.
    """
    shard, prefix, bounds = job.shard, job.settings.prefix, job.bounds
    assert bounds is not None
    done = FinishedFile.read(shard)
    if done is None:
        raise InputError(f"{shard.source}: changed since it was scored; run the same command again")
    scored = shard.unbucketed_path
    counts: dict[str, int] = {}

    def write(aside: Path) -> None:
        columns = {prefix + BUCKET: BUCKET}
        schema = result_schema(scored, iter(()), scored, columns=columns)
        with open_writer(aside, shard.result_path, source=scored, schema=schema) as writer:
            for some, values in read_values(scored, prefix + PERPLEXITY, progress):
                buckets = [bucket(value, bounds) for value in values]
                for each in buckets:
                    counts[str(each)] = counts.get(str(each), 0) + 1
                writer.write(some, [{prefix + BUCKET: each} for each in buckets])
        done.buckets = counts
        done.write(shard.record_path)

    shard.result_path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(shard.result_path, write)
    scored.unlink()
    return 0
