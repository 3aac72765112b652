"""`sglm prep`: turns text into a token store."""

import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglm.cli import next_step, options
from sglm.cli.signals import termination_raises
from sglm.cli.streams import announce_terminal

if TYPE_CHECKING:
    from sglm.text.sources import Source
    from sglm.text.store import TokenStore
    from sglm.text.tokenizer import Tokenizer

SECONDS_BETWEEN_LINES = 10.0
MANY_KNOWN = 0.2  # share of a split's lines; some recur in every text, most in source code
FIRST_RECIPE = "tiny"
# Certainly enough for this recipe. Checking a shorter text takes seconds, for imports.
LONG_ENOUGH_TOKENS = 20_000
# Joins the lines of each paragraph (docs/how-to/own-corpus.md).
JOIN = (
    r"""perl -ne 's/\s*$//; /^(\s*)(.*)/;"""
    r""" print $t && $2 ne "" && !index($p, $1) ? " $2" : $. > 1 ? "\n$_" : $_;"""
    r""" ($p, $t) = ($1, $2 ne ""); END { print "\n" }'"""
)

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE",
        help="A text file (.txt, .txt.gz), .jsonl, .parquet, a folder of those, - for stdin, "
        "builtin:python-docs (prose), builtin:python-code (source), or hf:NAME[:CONFIG] (a Hugging "
        "Face data set). Several are read one after the other.",
        show_default=False,
    ),
]
VocabSizeOption = Annotated[
    int | None,
    options.number(
        "--vocab-size",
        int,
        "Size of the vocabulary. Left out: 8000, or fewer for a short text (sentencepiece); every"
        " word of the training text (word). Needed with ids.",
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Learned from the text: sentencepiece, word, char or byte. Given: hf:FILE (a"
        " tokenizer.json of Hugging Face), spm:FILE (a SentencePiece model), or ids (the text"
        " consists of integers, one sequence per line).",
        show_default="sentencepiece",
    ),
]
TokenizerOfOption = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN", help="Use the tokenizer of a run, a model or a store.", show_default=False
    ),
]
EosIdOption = Annotated[
    int | None,
    options.number(
        "--eos-id",
        int,
        "The id that ends lines or documents (hf, spm, ids). Left out: the tokenizer's own; if it"
        " has none, an id is added.",
        show_default=False,
    ),
]
ValidOption = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Validation text: a source, or the fraction to hold out."),
]
TestOption = Annotated[
    str, typer.Option(metavar="TEXT", help="Test text: a source, or the fraction to hold out.")
]
OutOption = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="STORE", help="Folder for the store.", show_default=False),
]


def prep(
    *,
    sources: SourcesArgument,
    out: OutOption,
    tokenizer: TokenizerOption = None,
    tokenizer_of: TokenizerOfOption = None,
    vocab_size: VocabSizeOption = None,
    eos_id: EosIdOption = None,
    valid: ValidOption = "0.05",
    test: TestOption = "0.05",
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field of a record that holds its text.")
    ] = "text",
    seed: Annotated[int, options.number("--seed", int, "Chooses what is held out.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a store that is already there.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Turn text into a token store to train on.

    Validation and test text is held out before any vocabulary is learned.
    """
    from sglm.errors import InputError
    from sglm.text.prepare import StoreSettings, prepare

    if tokenizer is not None and tokenizer_of is not None:
        raise InputError("give --tokenizer or --tokenizer-of, not both")
    if "-" in (*sources, valid, test):
        announce_terminal()
    started = time.monotonic()
    settings = StoreSettings(
        tokenizer=tokenizer or "sentencepiece",
        tokenizer_of=tokenizer_of,
        vocab_size=vocab_size,
        eos_id=eos_id,
        valid=_fraction_or_source(valid),
        test=_fraction_or_source(test),
        text_field=text_field,
        seed=seed,
    )
    with termination_raises("terminated; no store was written"), _progress() as show_progress:
        store = prepare(sources, out, settings, force=force, on_progress=show_progress)
    seconds = time.monotonic() - started
    _warn_of_no_words(store)
    _warn_of_repeated_lines(store)
    if store.tokenizer().is_text:
        _warn_of_line_ends(sources, store)
    if as_json:
        facts = {
            "out": str(out),
            "tokenizer": store.meta["tokenizer"],
            "splits": {split: store.counts(split)._asdict() for split in store.splits},
            "fingerprint": store.fingerprint,
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps(facts))
    else:
        _print_summary(store, seconds)


def _fraction_or_source(text: str) -> float | str:
    number = text.removesuffix("%")
    try:
        return float(number) / (100 if number != text else 1)
    except ValueError:
        return text


def _warn_of_line_ends(sources: list[str], store: "TokenStore") -> None:
    """Warns of the first file whose lines are wrapped at a width, or end in CR LF."""
    from sglm.errors import InputError, SglmWarning
    from sglm.text.sources import find_sources

    # The store is complete, whatever becomes of its sources; warnings about them came before.
    with suppress(InputError, OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore", SglmWarning)
        found = [each for name in sources if name != "-" for each in find_sources(name)]
        _warn_of_first([each for each in found if not (each.documents or each.read_once)], store)


def _warn_of_first(sources: "Sequence[Source]", store: "TokenStore") -> None:
    from sglm.text.wrapping import has_crlf, wrapped_width

    holds_space = store.meta["tokenizer"]["kind"] != "word"
    for source in sources:
        width = wrapped_width(piece.text for piece in source.read())
        # Joining lines removes carriage returns too.
        if width is None and holds_space and has_crlf(piece.text for piece in source.read()):
            typer.echo(
                f"warning: the lines of {source.name} end in CR LF, as Windows writes them. The"
                " carriage returns become tokens, and `sglm score` does not read them. Remove them"
                f" first{_returns_removing_command(source.name)}",
                err=True,
            )
            return
        if width is not None:
            typer.echo(
                f"warning: the lines of {source.name} are wrapped at {width} columns. Line breaks"
                " become tokens, and a model learns to count columns. Join the lines first"
                f"{_joining_command(source.name)}",
                err=True,
            )
            return


def _joining_command(name: str) -> str:
    """Returns the command that joins the lines of a file, as `_command` does."""
    return _command(JOIN, name, "joined")


def _returns_removing_command(name: str) -> str:
    return _command("""perl -pe 's/\\r$//'""", name, "lf")


def _command(program: str, name: str, made: str) -> str:
    """Returns `: ` and a command that writes what a program makes of a file into a new file."""
    if not name.isprintable():
        return ""  # the warning shows the name with escapes
    stem = Path(name).name.split(".")[0]
    names = chain([f"{stem}-{made}.txt"], (f"{stem}-{made}-{n}.txt" for n in count(2)))
    target = next(each for each in names if not os.path.lexists(each))
    source, target = (
        shlex.quote(f"./{each}" if each.startswith("-") else each) for each in (name, target)
    )
    if name.lower().endswith(".gz"):
        return f": zcat {source} | {program} > {target}"
    return f": {program} {source} > {target}"


def _print_summary(store: "TokenStore", seconds: float) -> None:
    from sglm.text.tokenizer import GIVEN_KINDS

    facts = store.meta["tokenizer"]
    typer.echo(
        f"{store.folder}: {facts['kind']} tokenizer, vocabulary {facts['vocab_size']:,}, "
        f"{seconds:.1f} s"
    )
    if facts["kind"] in GIVEN_KINDS:
        typer.echo(f"  {_end_of_text(store.tokenizer())}")
    rows = [["", *store.counts("train")._fields]]
    rows += [
        [split, *("-" if each is None else f"{each:,}" for each in store.counts(split))]
        for split in store.splits
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *counts in rows:
        shown = (count.rjust(width) for count, width in zip(counts, widths[1:], strict=True))
        typer.echo(f"  {name:<{widths[0]}}  {'  '.join(shown)}")
    typer.echo(_next_step(store))


def _warn_of_no_words(store: "TokenStore") -> None:
    """Warns if a held-out split has no words."""
    for split in store.splits:
        if split != "train" and store.counts(split).words == 0:
            typer.echo(
                f"warning: {split} has no words, so its numbers mean nothing; hold out more of the"
                f" text, or give a file of its own (--{split})",
                err=True,
            )


def _warn_of_repeated_lines(store: "TokenStore") -> None:
    """Warns if many held-out lines also occur in the training text."""
    training = store.line_hashes("train")
    for split in store.splits:
        lines = store.line_hashes(split)
        if split == "train" or training is None or lines is None:
            continue
        known = lines.overlap(training)
        count = lines.line_count
        if known > MANY_KNOWN * count:
            share = f"{known:,} of {count:,} lines of {split} ({known / count:.0%})"
            typer.echo(
                f"warning: {share} are in train too, so they say little about other text (lines"
                " of fewer than five words aside)",
                err=True,
            )


def _end_of_text(tokenizer: "Tokenizer") -> str:
    """Returns a sentence about a given tokenizer's `<eos>`: its id, and what it ends."""
    unit = "line" if tokenizer.eos_ends_lines else "document (newlines are tokens)"
    name = getattr(tokenizer, "eos_name", "")
    added = ", which is added" if tokenizer.adds_eos else f", {name}" if name else ""
    return f"each {unit} ends in the id {tokenizer.eos_id}{added}"


def _next_step(store: "TokenStore") -> str:
    settings = _settings_of_first_training(store)
    if settings is None:
        return "This is too little text to train on; prepare more."
    run = next_step.run_folder(store.folder)
    changes = [argument for setting in settings for argument in ("--set", setting)]
    places: list[str | Path] = ["--data", store.folder, "--out", run]
    return f"next: {next_step.command('train', FIRST_RECIPE, *places, *changes)}"


def _settings_of_first_training(store: "TokenStore") -> list[str] | None:
    """Returns settings to change in the first recipe so that the text is long enough for it; None
    if the text is too short with any of them."""
    if store.counts("train").tokens >= LONG_ENOUGH_TOKENS:
        return []
    from sglm.config import load_config
    from sglm.errors import InputError
    from sglm.train.build import build_batcher

    for settings in ([], ["train.batch=4"], ["train.batch=1"], ["train.batch=1", "train.window=8"]):
        try:
            build_batcher(load_config(FIRST_RECIPE, settings), store)
        except InputError:
            continue
        return settings
    return None


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Shows progress on stderr: bars on a terminal, otherwise a line now and then."""
    if not sys.stderr.isatty():
        yield _progress_lines()
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show_bar(doing: str, done: int, total: int | None) -> None:
            if doing not in tasks:
                tasks[doing] = bars.add_task(doing, total=total)
            bars.update(tasks[doing], completed=done)

        yield show_bar


def _progress_lines() -> Callable[[str, int, int | None], None]:
    last = time.monotonic()

    def print_line(doing: str, done: int, total: int | None) -> None:
        nonlocal last
        if (now := time.monotonic()) - last < SECONDS_BETWEEN_LINES:
            return
        last = now
        of = f" of {total / 1e6:,.0f}" if total else ""
        typer.echo(f"{doing}: {done / 1e6:,.0f}{of} MB", err=True)

    return print_line
