"""`sglm score`: scores the texts in a file, one per line, or the records of a corpus."""

import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglm.cli import options
from sglm.cli import score_corpus as corpus
from sglm.cli.colored import colored_text, legend
from sglm.cli.lines import numbered, read_batches
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.scoring.results import Score

SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE",
        help="One text per line; left out or -: stdin. With --out: files and folders.",
        show_default=False,
    ),
]
PerTokenOption = Annotated[
    bool, typer.Option("--per-token", help="Print each token and its log-probability too.")
]
ColorOption = Annotated[
    bool, typer.Option("--color", help="Print only the text, each token coloured by its surprisal.")
]
BosOption = Annotated[
    bool,
    typer.Option(
        "--bos/--no-bos", help="Score the first token too, predicted from the start of text."
    ),
]
EosOption = Annotated[bool, typer.Option("--eos/--no-eos", help="Score the end of each text too.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print a JSON object per line; with --out, only one.")
]


def score(
    *,
    run: options.RunArgument,
    sources: SourcesArgument = None,
    per_token: PerTokenOption = False,
    color: ColorOption = False,
    bos: BosOption = True,
    eos: EosOption = False,
    out: corpus.OutOption = None,
    format: corpus.FormatOption = None,
    text_field: corpus.TextFieldOption = "text",
    fields: corpus.FieldsOption = corpus.CorpusOptions.fields,
    prefix: corpus.PrefixOption = "",
    buckets: corpus.BucketsOption = None,
    processes: corpus.ProcessesOption = None,
    engine: corpus.EngineOption = corpus.EngineName.LOCAL,
    precision: corpus.PrecisionOption = corpus.ScorePrecision.FP32,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: JsonOption = False,
) -> None:
    """Score lines or a corpus: log-probability and perplexity.

    Prints the natural logarithm of each line's probability, its perplexity, and its bits per byte.
    Each line is a text of its own, of at most 4 MiB, without its line ending (LF or CRLF). Lines
    are scored as they arrive: a program that writes one into stdin gets its score back at once.

    With --out, the records of each file (.txt, .jsonl, .parquet) are written into that folder, to a
    file with its name, with scores added. The same command, given again, scores what is missing.
    """
    with ended_by_interrupts():
        import sglm.lm  # noqa: F401

    chosen = corpus.CorpusOptions(
        format=format,
        text_field=text_field,
        fields=fields,
        prefix=prefix,
        buckets=buckets,
        processes=processes,
        engine=engine,
        precision=precision,
    )
    shown = [name for name, on in {"--per-token": per_token, "--color": color}.items() if on]
    if len(given := [*shown, *["--json"] * (as_json and color), *["--out"] * bool(out)]) > 1:
        raise InputError(f"{given[0]} and {given[1]} do not go together; leave one out")
    if out is not None:
        corpus.score_corpus(
            run, sources or [], chosen, out=out, bos=bos, eos=eos, device=device, as_json=as_json
        )
        return
    chosen.refuse_without_out()
    row = colored_text if color else partial(_as_json if as_json else _as_row, per_token)
    heading = None if as_json else legend() if color else _HEADING
    _score_lines(run, sources or ["-"], row, heading=heading, bos=bos, eos=eos, device=device)


_HEADING = f"{'logprob':>12} {'ppl':>12} {'bits/byte':>10}  text"


def _score_lines(
    run: Path,
    sources: list[str],
    row: Callable[[str, "Score"], str],
    *,
    heading: str | None,
    bos: bool,
    eos: bool,
    device: options.Device,
) -> None:
    """Prints a row for each line as it arrives; keeps escape sequences also in a pipe, where Typer
    would remove them."""
    from sglm.loading import load

    if len(sources) > 1:
        raise InputError(f"{sources[1]}: one file at a time; for several, give --out DIR")
    batches = read_batches(
        Path(sources[0]),
        command=f"sglm score {shlex.quote(str(run))}",
        ends="; or score .jsonl and .parquet files and folders with --out DIR",
    )
    lm = load(run, device.value)
    lines = 0
    for texts in batches:
        if lines == 0 and heading is not None:
            typer.echo(heading, color=True)
        with numbered(Path(sources[0]), lines):
            results = lm.score(texts, bos=bos, eos=eos)
        lines += len(texts)
        typer.echo("\n".join(map(row, texts, results)), color=True)


def _as_json(per_token: bool, text: str, result: "Score") -> str:
    from sglm.scoring.metrics import finite_or_none

    line: dict[str, Any] = {
        "text": text,
        # JSON has neither NaN nor infinity.
        "logprob": finite_or_none(result.logprob),
        "n_tokens": result.n_tokens,
        "n_words": result.n_words,
        "n_bytes": result.n_bytes,
        "ppl": finite_or_none(result.ppl),
        "bits_per_byte": finite_or_none(result.bits_per_byte),
    }
    if per_token:
        line |= {
            "tokens": result.tokens,
            "token_logprobs": [finite_or_none(logprob) for logprob in result.token_logprobs],
            "unk": result.unk,
        }
    return json.dumps(line)


def _as_row(per_token: bool, text: str, result: "Score") -> str:
    ppl = f"{result.ppl:.2f}" if result.n_tokens else "-"
    bits = "-" if result.bits_per_byte is None else f"{result.bits_per_byte:.3f}"
    rows = [f"{result.logprob:12.3f} {ppl:>12} {bits:>10}  {text}"]
    if per_token:
        pairs = zip(result.tokens, result.token_logprobs, strict=True)
        rows += [f"{logprob:12.3f} {'':23}  | {token}" for token, logprob in pairs]
    return "\n".join(rows)
