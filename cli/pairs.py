"""`sglm pairs`: how often a model prefers the acceptable sentence of a minimal pair."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglm.cli import options
from sglm.cli.output import tsv_row
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.lm import LanguageModel
    from sglm.scoring.pairs import Accuracy, Pair, PairResults
    from sglm.scoring.results import Score

BATCH_PAIRS = 500
# Of a row with --tsv; logprob in nats, unk: 1 if a word is unknown.
COLUMNS = ("pair", "sentence_good", "sentence_bad", "logprob_good", "logprob_bad", "unk")


def pairs(
    *,
    run: options.RunArgument,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="JSON lines, a pair a line; or a folder of such."),
    ],
    good: Annotated[
        str, typer.Option(metavar="FIELD", help="The acceptable sentence.")
    ] = "sentence_good",
    bad: Annotated[str, typer.Option(metavar="FIELD", help="The other one.")] = "sentence_bad",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD,…",
            help="Accuracy for each value of these as well; left out: UID and field, where given.",
            show_default=False,
        ),
    ] = None,
    tsv: Annotated[
        bool, typer.Option("--tsv", help="A row for each pair, for R and pandas.")
    ] = False,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Accuracy on minimal pairs, as those of BLiMP.

    It is how often the acceptable sentence is the more probable one. A sentence's log-probability
    is the sum over its tokens, from the start of text on. A tie counts one half, and is counted.
    With --tsv: where each pair stands, its sentences, and their log-probabilities in nats.
    """
    with ended_by_interrupts():
        from sglm.errors import InputError
        from sglm.loading import load
        from sglm.scoring.pairs import PairResults, find_pair_files, read_pairs

    if tsv and as_json:
        raise InputError("give --tsv or --json, not both")
    paths = find_pair_files(files)
    groups = None if group is None else [name.strip() for name in group.split(",")]
    lm = load(run, device.value)
    results, unknown = PairResults(), 0
    read = read_pairs(paths, good=good, bad=bad, groups=groups)
    if tsv:
        typer.echo("\t".join(COLUMNS))
    while batch := list(islice(read, BATCH_PAIRS)):
        scored = _scored(lm, batch)
        for pair, good_score, bad_score in scored:
            results.count(pair, good_score.logprob, bad_score.logprob)
            unknown += any(good_score.unk) or any(bad_score.unk)
        if tsv:
            typer.echo("\n".join(tsv_row(_values(*each)) for each in scored), color=True)
    if not results.overall.n:
        raise InputError(f"{', '.join(map(str, files))}: no pairs in there")
    _warn_of_unknown(unknown, results.overall.n)
    if as_json:
        typer.echo(json.dumps(results.to_json()))
    elif not tsv:
        typer.echo("\n".join(_rows(results)))


def _warn_of_unknown(unknown: int, pairs: int) -> None:
    if unknown:
        typer.echo(
            f"warning: {unknown:,} of {pairs:,} pairs hold words that the vocabulary lacks; is the"
            " text tokenized as the training text was?",
            err=True,
        )


def _scored(lm: "LanguageModel", batch: list["Pair"]) -> list[tuple["Pair", "Score", "Score"]]:
    """The pairs of a batch, and the scores of their sentences. Sentences of the same tokens tie:
    read in different company, sums of the same numbers can differ in their last digits."""
    from sglm.errors import InputError
    from sglm.text.user_text import TextError

    try:
        scores = lm.score([text for pair in batch for text in pair[:2]])
    except TextError as error:
        where = batch[(error.number - 1) // 2].where
        raise InputError(f"{where}: {error.problem}") from error
    return [
        (pair, good, good if good.tokens == bad.tokens else bad)
        for pair, good, bad in zip(batch, scores[::2], scores[1::2], strict=True)
    ]


def _values(pair: "Pair", good: "Score", bad: "Score") -> tuple[object, ...]:
    """Of `COLUMNS`."""
    unk = any(good.unk) or any(bad.unk)
    return (pair.where, pair.good, pair.bad, f"{good.logprob:.6f}", f"{bad.logprob:.6f}", unk)


def _rows(results: "PairResults") -> Iterator[str]:
    named = results.groups()
    width = max(len("all"), *(len(name) for name in named)) if named else len("all")
    yield f"{'group':<{width}} {'pairs':>8} {'accuracy':>9} {'ties':>6}"
    for name, accuracy in named.items():
        yield _row(name, accuracy, width)
    yield _row("all", results.overall, width)


def _row(name: str, accuracy: "Accuracy", width: int) -> str:
    share = f"{100 * accuracy.accuracy:.1f} %"
    return f"{name:<{width}} {accuracy.n:>8,} {share:>9} {accuracy.ties:>6,}"
