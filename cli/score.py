"""`sglm score`: one text per line, one score per text, in order."""

import json
import shlex
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglm.cli import options
from sglm.cli.lines import numbered, read_batches
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.scoring.results import Score


def score(
    *,
    run: options.RunArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One text per line; - is stdin.")
    ] = Path("-"),
    per_token: Annotated[bool, typer.Option("--per-token", help="Each token as well.")] = False,
    bos: Annotated[
        bool, typer.Option("--bos/--no-bos", help="Predict the first token from the start of text.")
    ] = True,
    eos: Annotated[
        bool, typer.Option("--eos/--no-eos", help="Count the end of text after each line.")
    ] = False,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line.")] = False,
) -> None:
    """Log-probability and perplexity of every line of a text.

    The log-probability is natural; bits per byte are printed too. Each line is a text of its own,
    of 4 MiB at most. Its line ending (LF or CRLF) is not part of it. Lines are scored as they come:
    whoever writes one into stdin gets its score back at once.
    """
    with ended_by_interrupts():
        from sglm.lm import load

    batches = read_batches(file, command=f"sglm score {shlex.quote(str(run))}")
    lm = load(run, device.value)
    lines = 0
    for texts in batches:
        if lines == 0 and not as_json:
            typer.echo(f"{'logprob':>12} {'ppl':>12} {'bits/byte':>10}  text")
        with numbered(file, lines):
            results = lm.score(texts, bos=bos, eos=eos)
        lines += len(texts)
        shown = _as_json if as_json else _as_row
        typer.echo("\n".join(map(shown, texts, results, repeat(per_token))))


def _as_json(text: str, result: "Score", per_token: bool) -> str:
    from sglm.scoring.metrics import finite_or_none

    line: dict[str, Any] = {
        "text": text,
        # JSON has no NaN.
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


def _as_row(text: str, result: "Score", per_token: bool) -> str:
    ppl = f"{result.ppl:.2f}" if result.n_tokens else "-"
    bits = "-" if result.bits_per_byte is None else f"{result.bits_per_byte:.3f}"
    rows = [f"{result.logprob:12.3f} {ppl:>12} {bits:>10}  {text}"]
    if per_token:
        pairs = zip(result.tokens, result.token_logprobs, strict=True)
        rows += [f"{logprob:12.3f} {'':23}  | {token}" for token, logprob in pairs]
    return "\n".join(rows)
