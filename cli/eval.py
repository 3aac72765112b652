"""`sglm eval`: measures how well a model predicts a split or a file."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sglm.cli import adapting, options
from sglm.cli.mixing import TUNE, MixOption, check_both, mixed, read_weight, tuned
from sglm.cli.streams import announce_terminal
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts
from sglm.scoring.metrics import format_perplexity

if TYPE_CHECKING:
    from sglm.lm import LanguageModel
    from sglm.scoring.results import Evaluation
    from sglm.text.store import TokenStore


class Split(StrEnum):
    """The held-out parts of a token store."""

    VALID = "valid"
    TEST = "test"


class Context(StrEnum):
    """What the model has read before a text: all texts before it, or nothing."""

    CARRIED = "carried"
    RESET = "reset"


SplitOption = Annotated[
    Split | None,
    options.one_of(
        "--split",
        Split,
        help_text="The split of the store; left out: test, or valid if there is no test split or"
        " something is tuned.",
        meant={"dev": "valid"},
    ),
]


ContextOption = Annotated[
    Context,
    options.one_of(
        "--context",
        Context,
        help_text="carried: all is one long text; reset: each line or document is its own text.",
    ),
]
TextOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Evaluate a text, not a store: anything that `sglm prep` reads; - is stdin.",
    ),
]
EnsembleOption = Annotated[
    bool,
    typer.Option(
        "--ensemble", help="Average the probabilities of the models at the ends of cycles."
    ),
]
WeightOption = Annotated[
    str | None,
    typer.Option(
        metavar="X|tune",
        help="Weight of the n-gram model, from 0 to 1; tune: the best one on the first half of the"
        " validation split.",
    ),
]


def evaluate(
    *,
    run: options.RunArgument,
    data: options.OwnStoreOption = None,
    split: SplitOption = None,
    text: TextOption = None,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field that holds a record's text, for --text.")
    ] = "text",
    context: ContextOption = Context.CARRIED,
    adapt: adapting.AdaptOption = "none",
    setting: adapting.SettingOption = None,
    tune: adapting.TuneOption = False,
    mix: MixOption = None,
    weight: WeightOption = None,
    ensemble: EnsembleOption = False,
    last: options.LastOption = None,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Measure the perplexity of a held-out split or of a file.

    Prints it per token and per word, and bits per byte; each token counts once. Without --data and
    --text, the store that the run was trained on is evaluated. With --text, --data names the store
    that --weight tune and --adapt dynamic learn from. --tune and --weight tune choose on the first
    half of the validation split; the second half, or --split test, is then evaluated. --adapt
    synthetic leaves out the first half too, because `sglm adapt-train` learns from it.
    """
    settings = adapting.parse_settings(setting, adapt)
    check_both(mix, weight)
    adapts, learns = adapt != "none", weight == TUNE or "dynamic" in adapt
    options.refuse_together(
        (last is not None and not ensemble, "--last chooses snapshots; give --ensemble as well"),
        (data and text and not learns, "give --data DIR (a store) or --text FILE, not both"),
        (text and split, "--split chooses a part of a store; --text FILE is evaluated whole"),
        (tune and (text or not adapts), _TUNE_MESSAGE),
        (adapts and (mix or ensemble), "--adapt goes with neither --mix nor --ensemble"),
    )
    how: Literal["carried", "reset"] = "reset" if context is Context.RESET else "carried"
    lm = _loaded(run, device, ensemble=ensemble, last=last)
    store = None
    if text is None or weight == TUNE:
        store = _store(data, run, is_evaluated=text is None)
    lm, mixing = _mixed(lm, mix, weight, store=store, context=how)
    if adapts:
        lm = adapting.adapted(
            lm, adapt, settings, store=store, run=run, data=data, tune=tune, context=how
        )
    if text is None:
        assert store is not None
        tuned, trained = tune or weight == TUNE, adapt == "synthetic"
        name, half = _part(store, split, tuned=tuned, trained=trained)
        result = _evaluated(lm, store, split=name, half=half, context=how)
    else:
        result = _evaluated_text(lm, text, text_field, context=how)
    _warn(result)
    if as_json:
        typer.echo(json.dumps(result.to_json() | ({"mix": mixing} if mixing else {})))
    else:
        _print_table(result)


_TUNE_MESSAGE = "--tune chooses settings of --adapt KIND on a store; give --adapt, and no --text"


def _loaded(
    run: Path, device: options.Device, *, ensemble: bool, last: int | None
) -> "LanguageModel":
    with ended_by_interrupts():
        from sglm.loading import load
        from sglm.snapshots import load_ensemble

    return load_ensemble(run, device.value, last=last) if ensemble else load(run, device.value)


def _mixed(
    lm: "LanguageModel",
    mix: Path | None,
    weight: str | None,
    *,
    store: "TokenStore | None",
    context: Literal["carried", "reset"],
) -> tuple["LanguageModel", dict[str, Any] | None]:
    """Returns the model, mixed if the options say so, and the mixture's entry in `--json`."""
    if mix is None or weight is None:
        return lm, None
    if weight == TUNE and store is not None:
        lm, value = tuned(lm, mix, store, context=context)
    else:
        value = read_weight(weight)
        lm = mixed(lm, mix, value)
    return lm, {"model": str(mix), "weight": value, "tuned": weight == TUNE}


def _part(
    store: "TokenStore", split: Split | None, *, tuned: bool, trained: bool
) -> tuple[str, Literal["second"] | None]:
    """Returns the split to evaluate, and the half of it: the second half of valid if settings were
    tuned, or the network for synthetic gradients was trained, on the first."""
    given = "test" if "test" in store.splits and not tuned else "valid"
    name = split.value if split else given
    return name, "second" if name == "valid" and (tuned or trained) else None


def _evaluated(
    lm: "LanguageModel",
    store: "TokenStore",
    *,
    split: str,
    half: Literal["second"] | None,
    context: Literal["carried", "reset"],
) -> "Evaluation":
    sample = adapting.sample_of_split(lm, store, split)
    return adapting.with_cost(lm.evaluate(store, split, context, half=half), lm, sample)


def _evaluated_text(
    lm: "LanguageModel", text: Path, text_field: str, *, context: Literal["carried", "reset"]
) -> "Evaluation":
    if str(text) == "-":
        announce_terminal()
    sample = adapting.sample_of_text(lm, text, text_field)
    result = lm.perplexity(text, context=context, text_field=text_field)
    _warn_of_carriage_returns(lm, text)
    return adapting.with_cost(result, lm, sample)


def _warn_of_carriage_returns(lm: "LanguageModel", text: Path) -> None:
    from sglm.text.lines import READ_BYTES, read_text_lines
    from sglm.text.sources import RECORD_ENDINGS
    from sglm.text.wrapping import has_crlf

    if not text.is_file() or text.name.lower().endswith(RECORD_ENDINGS):
        return
    # A word tokenizer drops carriage returns with all other white space.
    if lm.tokenizer.kind == "word" or not lm.tokenizer.is_text:
        return
    if has_crlf(piece.text for piece in read_text_lines(text, READ_BYTES)):
        typer.echo(
            f"warning: the lines of {text} end in CR LF, as Windows writes them, and the carriage"
            " returns are scored; if the training text has none, remove them first:"
            " perl -pe 's/\\r$//'",
            err=True,
        )


def _store(data: Path | None, run: Path, *, is_evaluated: bool) -> "TokenStore":
    """Opens the store to evaluate, or only to tune on: the given one, or that of the run."""
    from sglm.text.store import TokenStore
    from sglm.train.record import training_store

    if data is not None:
        return TokenStore.open(data)
    try:
        store = training_store(run)
    except InputError as error:
        raise InputError(f"{error}, or --text FILE" if is_evaluated else str(error)) from None
    purpose = "evaluating" if is_evaluated else "tuning on"
    typer.echo(f"{purpose} {store.folder}, the store that the run was trained on", err=True)
    return store


def _warn(result: "Evaluation") -> None:
    """Warns if the numbers are infinite, or too good because the model was trained on the text."""
    _warn_of_lines_trained_on(result)
    if math.isinf(result.nll_nats):
        typer.echo(
            "warning: a token has probability 0, so the perplexity is infinite: the n-gram model"
            " alone does not know all tokens; give a --weight below 1",
            err=True,
        )


def _warn_of_lines_trained_on(result: "Evaluation") -> None:
    from sglm.text.overlap import MOST_KEPT

    known = result.lines_in_training
    if known and result.lines:
        share = 100 * known / result.lines
        about = "about " if result.lines > MOST_KEPT else ""  # only a sample of lines is compared
        typer.echo(
            f"warning: {about}{known:,} of {result.lines:,} lines ({share:.3g} %) also occur in the"
            " training text (lines of fewer than 5 words aside)",
            err=True,
        )


def _print_table(result: "Evaluation") -> None:
    known, bits = result.lines_in_training, result.bits_per_byte
    unknown = f" ({result.unknown:,} <unk>)" if result.unknown else ""
    no_bits = "- (<unk> hides bytes)" if result.unknown else "-"
    is_text = result.words is not None  # not ids
    rows = {"perplexity per token": format_perplexity(result.token_ppl)}
    if is_text:
        rows["perplexity per word"] = format_perplexity(result.word_ppl) if result.words else "-"
        rows["bits per byte"] = no_bits if bits is None else f"{bits:.4f}"
    rows["tokens"] = f"{result.tokens:,}{unknown}"
    if is_text:
        rows["words"] = f"{result.words:,}"
        rows["bytes"] = f"{result.bytes:,}" if result.bytes else "unknown"
    rows |= {
        **adapting.table_rows(result),
        "lines trained on": "unknown" if known is None else f"{known:,} of {result.lines:,}",
        "nats in all": f"{result.nll_nats:,.2f}",
        "seconds": f"{result.seconds:,.1f}",
    }
    typer.echo(f"{result.model} on {result.split}, context {result.context}")
    for name, value in rows.items():
        typer.echo(f"  {name:<21} {value}")
