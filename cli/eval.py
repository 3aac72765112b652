"""`sglm eval`: how well a model predicts a split or a file."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sglm.cli import options
from sglm.cli.streams import announce_terminal
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.scoring.results import Evaluation
    from sglm.text.store import TokenStore


class Split(StrEnum):
    """The held-out parts of a token store."""

    VALID = "valid"
    TEST = "test"


class Context(StrEnum):
    """What is known before a text."""

    CARRIED = "carried"
    RESET = "reset"


SplitOption = Annotated[
    Split | None,
    options.one_of(
        "--split",
        Split,
        help_text="Of the store; test where there is one, else valid.",
        meant={"dev": "valid"},
    ),
]


def evaluate(
    *,
    run: options.RunArgument,
    data: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Left out: the store that the run was trained on."),
    ] = None,
    split: SplitOption = None,
    text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instead of a store: anything that `sglm prep` reads; - is stdin."
        ),
    ] = None,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field of a record of --text that is its text.")
    ] = "text",
    context: Annotated[
        Context,
        options.one_of(
            "--context",
            Context,
            help_text="carried: one long text; reset: each line or document alone.",
        ),
    ] = Context.CARRIED,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Perplexity of a held-out split or of a file.

    Per token and per word, and in bits per byte; every token counts exactly once. Without --data
    and --text: of the test split of the store that the run was trained on.
    """
    with ended_by_interrupts():
        from sglm.errors import InputError
        from sglm.lm import load

    if data is not None and text is not None:
        raise InputError("give --data DIR (a store) or --text FILE, not both")
    if text is not None and split is not None:
        raise InputError("--split chooses a part of a store; --text FILE is evaluated whole")
    how: Literal["carried", "reset"] = "reset" if context is Context.RESET else "carried"
    lm = load(run, device.value)
    if text is not None:
        if str(text) == "-":
            announce_terminal()
        result = lm.perplexity(text, context=how, text_field=text_field)
    else:
        store = _store(data, run)
        chosen = split.value if split else "test" if "test" in store.splits else "valid"
        result = lm.evaluate(store, chosen, how)
    _warn_of_lines_trained_on(result)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
    else:
        _print_table(result)


def _store(data: Path | None, run: Path) -> "TokenStore":
    """The one that was given, or the one that the run was trained on."""
    from sglm.text.store import TokenStore
    from sglm.train.record import trained_on

    if data is not None:
        return TokenStore.open(data)
    store = trained_on(run)
    typer.echo(f"evaluating {store.folder}, which it was trained on", err=True)
    return store


def _warn_of_lines_trained_on(result: "Evaluation") -> None:
    from sglm.text.overlap import MOST_KEPT

    known = result.lines_in_training
    if known and result.lines:
        share = 100 * known / result.lines
        about = "about " if result.lines > MOST_KEPT else ""  # only a sample was compared
        typer.echo(
            f"warning: {about}{known:,} of {result.lines:,} lines ({share:.3g} %) also occur in the"
            " training text (lines of fewer than 5 words aside)",
            err=True,
        )


def _print_table(result: "Evaluation") -> None:
    known = result.lines_in_training
    unknown = f" ({result.unknown:,} <unk>)" if result.unknown else ""
    rows = {
        "perplexity per token": f"{result.token_ppl:,.2f}",
        "tokens": f"{result.tokens:,}{unknown}",
    }
    if result.words is not None and result.bytes is not None:  # text, not ids
        bits = result.bits_per_byte
        rows = {
            "perplexity per token": rows["perplexity per token"],
            "perplexity per word": f"{result.word_ppl:,.2f}",
            "bits per byte": "- (<unk> hides bytes)" if bits is None else f"{bits:.4f}",
            "tokens": rows["tokens"],
            "words": f"{result.words:,}",
            "bytes": f"{result.bytes:,}",
        }
    rows |= {
        "lines trained on": "unknown" if known is None else f"{known:,} of {result.lines:,}",
        "nats in all": f"{result.nll_nats:,.2f}",
        "seconds": f"{result.seconds:,.1f}",
    }
    typer.echo(f"{result.model} on {result.split}, context {result.context}")
    for name, value in rows.items():
        typer.echo(f"  {name:<21} {value}")
