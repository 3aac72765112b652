"""`sglm pairs`: counts how often a model prefers the acceptable sentence of a minimal pair."""

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
# The columns with --tsv. logprob: in nats; unk: 1 if a word of either sentence is unknown.
COLUMNS = ("pair", "sentence_good", "sentence_bad", "logprob_good", "logprob_bad", "unk")


def pairs(
    *,
    run: options.RunArgument,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="JSON lines, one pair per line, or a folder of them."),
    ],
    good: Annotated[
        str, typer.Option(metavar="FIELD", help="Field of the acceptable sentence.")
    ] = "sentence_good",
    bad: Annotated[
        str, typer.Option(metavar="FIELD", help="Field of the unacceptable sentence.")
    ] = "sentence_bad",
    group: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD,…",
            help="Show the accuracy for each value of these fields too; left out: UID and field, if"
            " present.",
            show_default=False,
        ),
    ] = None,
    tsv: Annotated[bool, typer.Option("--tsv", help="Print each pair, for R and pandas.")] = False,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Measure the accuracy on minimal pairs, as in BLiMP.

    It is the share of pairs whose acceptable sentence is the more probable one; a tie counts as one
    half, and ties are shown too. A sentence's log-probability is the sum over its tokens, the first
    included. With --tsv: the place of each pair, its sentences, their log-probabilities in nats.
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
            f"warning: {unknown:,} of {pairs:,} pairs hold words that the vocabulary lacks; was the"
            " text tokenized like the training text?",
            err=True,
        )


def _scored(lm: "LanguageModel", batch: list["Pair"]) -> list[tuple["Pair", "Score", "Score"]]:
    """Returns the pairs of a batch, and the scores of their sentences.

    Sentences with the same tokens share a score, so that they tie: in a batch with other sentences,
    sums of the same numbers may differ in the last digits.
    """
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
    """Returns the values of `COLUMNS`."""
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
