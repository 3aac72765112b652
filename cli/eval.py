"""`sglm eval`: how well a model predicts a split or a file."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sglm.cli import adapting, options
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


TextOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Instead of a store: anything that `sglm prep` reads; - is stdin."
    ),
]
ContextOption = Annotated[
    Context,
    options.one_of(
        "--context",
        Context,
        help_text="carried: one long text; reset: each line or document alone.",
    ),
]


def evaluate(
    *,
    run: options.RunArgument,
    data: options.OwnStoreOption = None,
    split: SplitOption = None,
    text: TextOption = None,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field of a record of --text that is its text.")
    ] = "text",
    context: ContextOption = Context.CARRIED,
    adapt: adapting.AdaptOption = "none",
    setting: adapting.SettingOption = None,
    tune: adapting.TuneOption = False,
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
    settings = adapting.parse_settings(setting, adapt)
    if tune and (adapt == "none" or text is not None):
        raise InputError("--tune chooses settings of --adapt KIND on a store's validation split")
    how: Literal["carried", "reset"] = "reset" if context is Context.RESET else "carried"
    lm = load(run, device.value)
    store = None if text is not None else _store(data, run)
    if adapt != "none":
        lm = adapting.adapted(lm, adapt, settings, store=store, run=run, tune=tune)
    if store is not None:
        chosen = _split(split, store, tune)
        half: Literal["second"] | None = "second" if tune and chosen == "valid" else None
        result = lm.evaluate(store, chosen, how, half=half)
    else:
        assert text is not None  # or there would be a store
        if str(text) == "-":
            announce_terminal()
        result = lm.perplexity(text, context=how, text_field=text_field)
    result = adapting.with_cost(result, lm)
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


def _split(given: Split | None, store: "TokenStore", tune: bool) -> str:
    """What to evaluate: with settings tuned on one half of valid, the other."""
    if given is not None:
        return given.value
    return "test" if "test" in store.splits and not tune else "valid"


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
        **adapting.table_rows(result),
        "nats in all": f"{result.nll_nats:,.2f}",
        "seconds": f"{result.seconds:,.1f}",
    }.items():
        typer.echo(f"  {name:<21} {value}")
