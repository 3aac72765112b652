"""`sglm eval`: how well a model predicts a split or a file."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sglm.cli import options
from sglm.cli.streams import announce_terminal
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.scoring.results import Evaluation


class Split(StrEnum):
    """The held-out parts of a token store."""

    VALID = "valid"
    TEST = "test"


class Context(StrEnum):
    """What is known before a text."""

    CARRIED = "carried"
    RESET = "reset"


def evaluate(
    *,
    run: options.RunArgument,
    data: Annotated[
        Path | None, typer.Option(help="Token store that the model's tokenizer made.")
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Of --data; test where there is one, else valid.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Instead of --data: anything `sglm prep` reads; - stdin"),
    ] = None,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field of a record of --text that is its text.")
    ] = "text",
    context: Annotated[
        Context, typer.Option(help="carried: one long text; reset: each line or document alone.")
    ] = Context.CARRIED,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Perplexity, per token and per word, and bits per byte; every token counts exactly once."""
    import json

    with ended_by_interrupts():
        from sglm.errors import InputError
        from sglm.lm import load
        from sglm.text.store import TokenStore

    if (data is None) == (text is None):
        both = "not both" if data is not None else "one of them is needed"
        raise InputError(f"give --data DIR (a token store) or --text FILE, {both}")
    if text is not None and split is not None:
        raise InputError("--split chooses a part of --data; --text FILE is evaluated whole")
    how: Literal["carried", "reset"] = "reset" if context is Context.RESET else "carried"
    if text is not None:
        if str(text) == "-":
            announce_terminal()
        result = load(run, device.value).perplexity(text, context=how, text_field=text_field)
    elif data is not None:
        store = TokenStore.open(data)
        chosen = split.value if split else "test" if "test" in store.splits else "valid"
        result = load(run, device.value).evaluate(store, chosen, how)
    _warn_of_lines_trained_on(result)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        _print_table(result)


def _warn_of_lines_trained_on(result: "Evaluation") -> None:
    from sglm.text.overlap import MOST_KEPT

    known = result.lines_in_training
    if known and result.lines:
        share = 100 * known / result.lines
        about = "about " if result.lines > MOST_KEPT else ""  # then a sample was compared
        typer.echo(
            f"warning: {about}{known:,} of {result.lines:,} lines ({share:.2g} %) also occur in the"
            " training text (lines of fewer than 5 words aside)",
            err=True,
        )


def _print_table(result: "Evaluation") -> None:
    known = result.lines_in_training
    bits = (
        "- (<unk> hides bytes)" if result.bits_per_byte is None else f"{result.bits_per_byte:.4f}"
    )
    typer.echo(f"{result.model} on {result.split}, context {result.context}")
    for name, value in {
        "perplexity per token": f"{result.token_ppl:,.2f}",
        "perplexity per word": f"{result.word_ppl:,.2f}",
        "bits per byte": bits,
        "tokens": f"{result.tokens:,}" + (f" ({result.unknown:,} <unk>)" if result.unknown else ""),
        "words": f"{result.words:,}",
        "bytes": f"{result.bytes:,}",
        "lines trained on": "unknown" if known is None else f"{known:,} of {result.lines:,}",
        "nats in all": f"{result.nll_nats:,.2f}",
        "seconds": f"{result.seconds:,.1f}",
    }.items():
        typer.echo(f"  {name:<21} {value}")
