"""`sglm surprisal`: prints how surprising each word, or token, of a text was."""

import json
import math
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from sglm.cli import options
from sglm.cli.lines import numbered, read_batches
from sglm.cli.output import one_line, tsv_row
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.lm import LanguageModel
    from sglm.scoring.results import Score
    from sglm.scoring.words import Word

COLUMNS = (
    "text_id",
    "word_id",
    "word",
    "start",
    "end",
    "surprisal",
    "n_tokens",
    "unk",
    "rank",
    "entropy",
)
PREVIOUS = "previous"
_SPELLED_MESSAGE = (
    "note: {:,} words have characters that are spelled in bytes, because they are rare in the"
    " training text or not in it: their surprisal is high and says little. Write quotes, dashes and"
    " accents as that text does"
)


class Unit(StrEnum):
    """The units of a text that have a row each."""

    WORD = "word"
    TOKEN = "token"


class LogBase(StrEnum):
    """The bases of the logarithm, for bits, bans or nats."""

    TWO = "2"
    TEN = "10"
    E = "e"


class CorrectionName(StrEnum):
    """The corrections of the probability that a word ends."""

    NONE = "none"
    BOW = "bow"


UnitOption = Annotated[
    Unit, options.one_of("--unit", Unit, help_text="Print a row for each word or for each token.")
]
BaseOption = Annotated[
    LogBase,
    options.one_of(
        "--base", LogBase, help_text="Base of the logarithm: 2 gives bits, 10 bans, e nats."
    ),
]
ContextOption = Annotated[
    str,
    typer.Option(
        metavar="TEXT|previous",
        help="Text that is read before each line and not scored; previous: all lines before it.",
    ),
]
CorrectionOption = Annotated[
    CorrectionName,
    options.one_of(
        "--correction",
        CorrectionName,
        help_text="bow: the probability of a word includes its end (Pimentel & Meister 2024).",
    ),
]


def surprisal(
    *,
    run: options.RunArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A file with one text per line; - is stdin.")
    ] = Path("-"),
    unit: UnitOption = Unit.WORD,
    base: BaseOption = LogBase.TWO,
    context: ContextOption = "",
    correction: CorrectionOption = CorrectionName.NONE,
    tsv: Annotated[
        bool, typer.Option("--tsv", help="Print tab-separated values, for R and pandas.")
    ] = False,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: unit, base and rows.")
    ] = False,
) -> None:
    """Print the surprisal of every word of every line.

    It is -log of the word's probability given the text before it. Columns: text_id (the line, from
    0), word_id (the word in the line, from 0), word, start and end (its place in the line, in
    characters, end exclusive), surprisal, n_tokens, unk (1, in JSON true: a token is unknown), rank
    (only of a word of one token; 1: the likeliest) and entropy (of the next token, just before the
    word). White space before a word counts towards its probability but lies outside start and end;
    with --unit token it is part of the token.
    """
    with ended_by_interrupts():
        from sglm.errors import InputError
        from sglm.loading import load
        from sglm.scoring.words import NO_WORD_MARKS_MESSAGE

    if unit is Unit.TOKEN and correction is CorrectionName.BOW:
        raise InputError("--correction bow is about words; leave out --unit token")
    if tsv and as_json:
        raise InputError("give --tsv or --json, not both")
    log_base: Literal[2, 10, "e"] = "e" if base is LogBase.E else 2 if base is LogBase.TWO else 10
    fix: Literal["none", "bow"] = "bow" if correction is CorrectionName.BOW else "none"
    batches = read_batches(file, command=f"sglm surprisal {shlex.quote(str(run))}")
    lm = load(run, device.value)
    if correction is CorrectionName.BOW and not lm.tokenizer.marks_words:
        raise InputError(f"--correction bow {NO_WORD_MARKS_MESSAGE}")
    form = _json(unit, base) if as_json else _TSV if tsv else _TABLE
    byte_names = frozenset(map(lm.tokenizer.token, lm.tokenizer.byte_ids))
    text_id = spelled = 0
    separator = ""
    typer.echo(form.head)
    for scores in _scores(lm, batches, context=context, file=file):
        lines = []
        for score in scores:
            words = score.words(log_base, fix) if unit is Unit.WORD else _tokens(score, log_base)
            spelled += _words_spelled_in_bytes(score, byte_names)
            lines += [form.row(text_id, word_id, word) for word_id, word in enumerate(words)]
            text_id += 1
        if lines:
            typer.echo(separator + f"{form.separator}\n".join(lines), color=True)
            separator = form.separator
    typer.echo(form.tail, nl=False)
    if spelled:
        typer.echo(_SPELLED_MESSAGE.format(spelled), err=True)


def _scores(
    lm: "LanguageModel", batches: Iterator[list[str]], *, context: str, file: Path
) -> Iterator[list["Score"]]:
    if context == PREVIOUS:
        with numbered(file, 0):
            for score in lm.score_running(batches):
                yield [score]
        return
    if context and not context[-1].isspace():
        context += " "
    lines = 0
    for texts in batches:
        with numbered(file, lines):
            scores = lm.score(texts, distribution=True, context=context)
        lines += len(texts)
        yield scores


def _words_spelled_in_bytes(score: "Score", byte_names: frozenset[str]) -> int:
    """Returns the number of words that have a token of these names, which are single bytes."""
    places = [
        start
        for name, (start, _) in zip(score.tokens, score.offsets, strict=True)
        if name in byte_names
    ]
    if not places:
        return 0
    starts = [word.start for word in score.words()]
    return len({bisect_right(starts, place) for place in places})


def _tokens(score: "Score", base: Literal[2, 10, "e"]) -> list["Word"]:
    """Returns each token as a word of its own."""
    from sglm.scoring.words import Word, unit_nats

    assert score.ranks is not None
    assert score.entropies is not None
    nats = unit_nats(base)
    parallel = zip(
        score.tokens,
        score.offsets,
        score.token_logprobs,
        score.unk,
        score.ranks,
        score.entropies,
        strict=True,
    )
    return [
        Word(token, start, end, -logprob / nats, 1, unk, rank, entropy / nats)
        for token, (start, end), logprob, unk, rank, entropy in parallel
    ]


def _values(text_id: int, word_id: int, word: "Word") -> dict[str, Any]:
    values = (
        text_id,
        word_id,
        word.word,
        word.start,
        word.end,
        word.surprisal if math.isfinite(word.surprisal) else None,
        word.n_tokens,
        word.unk,
        word.rank,
        word.entropy,
    )
    return dict(zip(COLUMNS, values, strict=True))


def _as_json(text_id: int, word_id: int, word: "Word") -> str:
    return json.dumps(_values(text_id, word_id, word))


def _as_tsv(text_id: int, word_id: int, word: "Word") -> str:
    return tsv_row(_values(text_id, word_id, word).values())


def _as_row(text_id: int, word_id: int, word: "Word") -> str:
    entropy = "-" if word.entropy is None else f"{word.entropy:.3f}"
    rank = "-" if word.rank is None else f"{word.rank:,}"
    text = one_line(word.word) + (" (unknown)" if word.unk else "")
    numbers = f"{word.surprisal:10.3f} {entropy:>8} {rank:>7} {word.n_tokens:6}"
    return f"{text_id:6} {word_id:5} {numbers}  {text}"


class _Form(NamedTuple):
    """A form of output: a line for each row, printed while the text is read, so that memory stays
    flat."""

    head: str
    row: Callable[[int, int, "Word"], str]
    separator: str = ""
    """The text between two rows, before the line end."""
    tail: str = ""


def _json(unit: Unit, base: LogBase) -> _Form:
    head = json.dumps({"unit": unit.value, "base": base.value})
    return _Form(f'{head[:-1]}, "rows": [', _as_json, separator=",", tail="]}\n")


_TSV = _Form("\t".join(COLUMNS), _as_tsv)
_TABLE = _Form(
    f"{'text':>6} {'word':>5} {'surprisal':>10} {'entropy':>8} {'rank':>7} {'tokens':>6}  word",
    _as_row,
)
