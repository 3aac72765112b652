"""`sglm score RUN SOURCE… --out DIR`: scores a corpus, adding scores to its records."""

import json
import sys
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sglm.cli import options
from sglm.cli.signals import termination_raises
from sglm.errors import InputError, SglmError, Stopped, printable

if TYPE_CHECKING:
    from sglm.corpus_filter.plan import Settings
    from sglm.corpus_filter.run import Summary

# The number of failed files that are named on stderr; errors.json has all.
MOST_NAMED = 20


class FormatName(StrEnum):
    """The formats of the results."""

    JSONL = "jsonl"
    PARQUET = "parquet"


class EngineName(StrEnum):
    """The engines that run the work."""

    LOCAL = "local"
    RAY = "ray"


class ScorePrecision(StrEnum):
    """The number types of the matrix products."""

    FP32 = "fp32"
    BF16 = "bf16"


OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Score whole files, and write their records, with fields added, to this folder.",
    ),
]
FormatOption = Annotated[
    FormatName | None,
    options.one_of(
        "--format",
        FormatName,
        help_text="Format of the results; left out: parquet for parquet files, otherwise jsonl.",
    ),
]
TextFieldOption = Annotated[
    str, typer.Option(metavar="NAME", help="The field of a record that holds its text.")
]
FieldsOption = Annotated[
    str,
    typer.Option(
        metavar="NAME,…",
        help="Fields to add: any of perplexity, word_perplexity, bits_per_byte, logprob, n_tokens,"
        " n_words, n_bytes, n_unk.",
    ),
]
PrefixOption = Annotated[
    str, typer.Option(metavar="TEXT", help="Prefix of the names of the added fields.")
]
BucketsOption = Annotated[
    str | None,
    typer.Option(
        metavar="P,Q",
        help="Add the field `bucket`: head, middle or tail, divided at these two percentiles of"
        " the perplexities, such as 30,60.",
    ),
]
ProcessesOption = Annotated[
    int | None,
    options.number(
        "--processes",
        int,
        "Number of processes on this machine; left out: one per CPU, or one on a GPU.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    EngineName,
    options.one_of(
        "--engine",
        EngineName,
        help_text="local: processes on this machine; ray: files are tasks of a Ray cluster.",
    ),
]
PrecisionOption = Annotated[
    ScorePrecision,
    options.one_of(
        "--precision",
        ScorePrecision,
        help_text="Type of the matrix products. bf16: faster on hardware that has it; a line's"
        " perplexity changes by 0.2 % in the median, 2 % at most.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """The options that need `--out`, with their defaults."""

    format: FormatName | None = None
    text_field: str = "text"
    fields: str = "perplexity,bits_per_byte"
    prefix: str = ""
    buckets: str | None = None
    processes: int | None = None
    engine: EngineName = EngineName.LOCAL
    precision: ScorePrecision = ScorePrecision.FP32

    def refuse_without_out(self) -> None:
        """Refuses these options; to be called if `--out` was not given.

        Raises:
            InputError: One of them differs from its default.
        """
        for name, value in asdict(CorpusOptions()).items():
            if getattr(self, name) != value:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is for whole files; give --out DIR as well")


def score_corpus(
    run: Path,
    sources: list[str],
    chosen: CorpusOptions,
    *,
    out: Path,
    bos: bool,
    eos: bool,
    device: options.Device,
    as_json: bool,
) -> None:
    """Scores the files, and prints a summary.

    Raises:
        InputError: An option is wrong, there is no text, or `--out` holds other results.
        SglmError: Some files failed; the others are complete.
    """
    from sglm.corpus_filter.plan import plan_shards
    from sglm.corpus_filter.run import Execution
    from sglm.corpus_filter.run import score_corpus as score_all
    from sglm.runtime.device import pick_device

    if not sources:
        raise InputError("--out takes files and folders to score; none was given")
    if chosen.processes is not None and chosen.engine is EngineName.RAY:
        raise InputError("--processes is about this machine; leave it out with --engine ray")
    if chosen.processes is not None and chosen.processes < 1:
        raise InputError(f"--processes must be at least 1, but is {chosen.processes}")
    device_type = pick_device(device.value).type
    settings = _settings(run, chosen, bos=bos, eos=eos, device=device_type)
    shards = plan_shards(sources, out, text_field=chosen.text_field, format=settings.format)
    execution = Execution(
        run=run,
        device=device_type,
        processes=chosen.processes,
        ray=chosen.engine is EngineName.RAY,
        console=sys.stderr,
    )
    stop_message = "stopped; the same command continues with what is missing"
    try:
        with termination_raises(stop_message):
            summary = score_all(shards, settings, execution)
    except KeyboardInterrupt:
        raise Stopped(stop_message, signal_number=2) from None
    try:
        typer.echo(json.dumps(summary.to_json()) if as_json else "\n".join(_lines(summary)))
    finally:  # even if the reader of stdout has ended
        _report_failures(summary, out)


def _settings(run: Path, chosen: CorpusOptions, *, bos: bool, eos: bool, device: str) -> "Settings":
    from sglm.corpus_filter.measures import PERPLEXITY, check_fields
    from sglm.corpus_filter.plan import Settings, model_hash
    from sglm.model.linear import cpu_has_bfloat16

    fields = check_fields([name.strip() for name in chosen.fields.split(",") if name.strip()])
    if chosen.buckets is not None and PERPLEXITY not in fields:
        raise InputError("--buckets needs perplexities; add perplexity to --fields")
    if chosen.precision is ScorePrecision.BF16 and device == "cpu" and not cpu_has_bfloat16():
        raise InputError("--precision bf16: this CPU cannot multiply bfloat16; leave it out")
    result_format: Literal["jsonl", "parquet"] | None = None
    if chosen.format is not None:
        result_format = "parquet" if chosen.format is FormatName.PARQUET else "jsonl"
    return Settings(
        model=model_hash(run),
        text_field=chosen.text_field,
        fields=fields,
        prefix=chosen.prefix,
        format=result_format,
        percentiles=None if chosen.buckets is None else _percentiles(chosen.buckets),
        bos=bos,
        eos=eos,
        precision=chosen.precision.value,
    )


def _percentiles(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not 0 < low < high < 100:
        raise InputError(
            f"--buckets: {text!r} is not two rising percentiles between 0 and 100, such as 30,60"
        )
    return low, high


def _lines(summary: "Summary") -> list[str]:
    facts = summary.to_json()

    def shown(name: str, digits: int) -> str:
        return "-" if facts[name] is None else f"{facts[name]:,.{digits}f}"

    done = len(summary.done)
    lines = [
        f"{done:,} of {summary.files:,} files, {facts['records']:,} records,"
        f" {facts['tokens']:,} tokens",
        f"  perplexity per token {shown('token_ppl', 2)}, bits per byte"
        f" {shown('bits_per_byte', 4)}",
    ]
    if summary.already_done:
        lines.append(f"  done before: {summary.already_done:,} files")
    if summary.tokens_now:
        rate = summary.tokens_now / summary.seconds
        lines.append(f"  {summary.seconds:,.1f} s, {rate:,.0f} tokens a second")
    buckets = summary.buckets()
    if buckets is not None and summary.cutoffs is not None:
        low, high = (f"{bound:,.4g}" for bound in summary.cutoffs)
        meant = (f"below {low}", f"below {high}", f"{high} and above")
        lines += [
            f"  {name:<7} {count:>12,} records  perplexity {range_}"
            for (name, count), range_ in zip(buckets.items(), meant, strict=True)
        ]
        without = facts["records"] - sum(buckets.values())
        if without:
            lines.append(f"  {'none':<7} {without:>12,} records  without a perplexity")
    return lines


def _report_failures(summary: "Summary", out: Path) -> None:
    from sglm.corpus_filter.plan import ERRORS_FILE

    failed = summary.failed
    if not failed:
        return
    for each in failed[:MOST_NAMED]:
        typer.echo(f"sglm: {printable(str(each.error))}", err=True)
    more = len(failed) - MOST_NAMED
    also = f", {more:,} of them not named here" if more > 0 else ""
    raise SglmError(
        f"{len(failed):,} of {summary.files:,} files failed{also} ({out / ERRORS_FILE}); the others"
        " are complete. Correct the failed ones, then give the same command again"
    )
