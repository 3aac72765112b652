"""How well a model predicts a text: perplexities and bits per byte, with their units and context.

Token ids become nats in `sglm.scoring.stream`; here they are tied to the text they came from.
"""

import contextlib
import io
import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.batch import Tokens, texts_nll
from sglm.scoring.stream import evaluate_stream as evaluate_stream
from sglm.text.lines import READ_BYTES, Piece, read_text_lines
from sglm.text.overlap import LineHashes
from sglm.text.regroup import regroup
from sglm.text.sources import RECORD_ENDINGS, find_sources
from sglm.text.store import SplitCounts, TokenStore
from sglm.text.tokenizer import Tokenizer, utf8

Context = Literal["carried", "reset"]
# Tokens of one text that are held in memory together.
LONGEST_TEXT = 1 << 25


@dataclass(frozen=True)
class Evaluation:
    """The likelihood of a text and the measures made of it.

    `words` and `bytes` are those of the original text, not of what the tokenizer made of it, so
    that models with different vocabularies compare (as in lm-evaluation-harness).
    """

    nll_nats: float
    """Sum over all tokens."""
    tokens: int
    words: int
    """Whitespace-separated."""
    bytes: int
    """In UTF-8."""
    unknown: int
    """How many of the tokens are `<unk>`."""
    context: Context = "carried"
    """carried: the state runs through the whole text; reset: each line or document on its own."""
    model: str = ""
    """Where the model came from."""
    split: str = ""
    """What was evaluated: the name of a split, or of a file."""
    seconds: float = 0.0
    lines: int | None = None
    """How many of its lines have five words or more; None where nobody counted."""
    lines_in_training: int | None = None
    """How many of those occur in the training text too, an estimate where that is very large
    (`sglm.text.overlap`); None where that is not known: of a model without its run."""

    @property
    def token_ppl(self) -> float:
        """exp(nats per token); inf beyond the range of floats."""
        return perplexity(self.nll_nats, self.tokens)

    @property
    def word_ppl(self) -> float:
        """exp(nats per word), comparable across tokenizers; nan without words."""
        return perplexity(self.nll_nats, self.words)

    @property
    def bits_per_byte(self) -> float | None:
        """None where `<unk>` stands in the text, for it hides bytes."""
        return bits_per_byte(self.nll_nats, self.bytes, self.unknown)

    def to_json(self) -> dict[str, Any]:
        """The object that `sglm eval --json` prints; infinite and undefined numbers are None."""
        return {
            "model": self.model,
            "split": self.split,
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes,
            "nll_nats": finite_or_none(self.nll_nats),
            "token_ppl": finite_or_none(self.token_ppl),
            "word_ppl": finite_or_none(self.word_ppl),
            "bits_per_byte": finite_or_none(self.bits_per_byte),
            "context": self.context,
            "adapt": "none",
            "seconds": round(self.seconds, 3),
            "lines": self.lines,
            "lines_in_training": self.lines_in_training,
        }


def with_overlap(
    found: Evaluation, lines: LineHashes | None, training: LineHashes | None
) -> Evaluation:
    """The same evaluation, which says how many lines of its text were trained on."""
    if lines is None:
        return found
    known = None if training is None else lines.overlap(training)
    return replace(found, lines=lines.lines, lines_in_training=known)


def perplexity(nll_nats: float, units: int) -> float:
    """exp(nll_nats / units); inf where that leaves the range of floats, nan for no units at all."""
    if units <= 0:
        return math.nan
    try:
        return math.exp(nll_nats / units)
    except OverflowError:
        return math.inf


def bits_per_byte(nll_nats: float, text_bytes: int, unknown: int) -> float | None:
    """nll_nats / (bytes · ln 2); None where an unknown token hides bytes, or there are none."""
    return None if unknown or text_bytes <= 0 else nll_nats / (text_bytes * math.log(2))


def finite_or_none(value: float | None) -> float | None:
    """JSON has neither inf nor nan."""
    return value if value is not None and math.isfinite(value) else None


def evaluate_split(
    model: LSTMLanguageModel,
    store: TokenStore,
    split: str,
    *,
    context: Context = "carried",
    name: str = "",
) -> Evaluation:
    """Evaluates a model on a split of a store that its own tokenizer wrote.

    Args:
        model: in any mode; left as it is.
        store: see `TokenStore.open`.
        split: one of its splits.
        context: carried: the state runs through the split. reset: each text on its own, where a
            text ends in `<eos>`: a line at word level, else a document.
        name: what to call the model in the result.

    Raises:
        InputError: no such split, or context `reset` without any `<eos>` in it.
    """
    started = perf_counter()
    ids, eos_id = store.ids(split), store.tokenizer().eos_id
    if context == "carried":
        nll_nats = evaluate_stream(model, ids, eos_id)
    else:
        ends = np.flatnonzero(ids == eos_id) + 1
        if len(ends) == 0:
            raise InputError(
                f"{store.folder}: the split {split!r} is running text, its ids do not show where "
                "lines end; use --text FILE --context reset"
            )
        nll_nats = texts_nll(model, _cut(ids, ends), eos_id)
    seconds = perf_counter() - started
    return _evaluation(nll_nats, store.counts(split), context, name, split, seconds)


def evaluate_pieces(
    model: LSTMLanguageModel,
    tokenizer: Tokenizer,
    pieces: Iterable[Piece],
    *,
    context: Context = "carried",
    name: str = "",
    split: str = "text",
) -> Evaluation:
    """Evaluates a model on text as it comes; memory stays bounded however much that is.

    Gives what `evaluate_split` gives for a store made of the same pieces. With context `reset`
    each line of running text is on its own, whatever the tokenizer.

    Raises:
        InputError: there is no text, or not UTF-8 text; with context `reset`, a line of more than
            `LONGEST_TEXT` tokens.
    """
    started = perf_counter()
    counted = _Counted(tokenizer)
    if context == "carried":
        ids = (counted.encode(piece) for piece in regroup(pieces))
        nll_nats = evaluate_stream(model, ids, tokenizer.eos_id)
    else:
        nll_nats = texts_nll(model, counted.texts(pieces), tokenizer.eos_id)
    if counted.counts.tokens == 0:
        raise InputError(f"{split}: no text to evaluate; give a file that holds some")
    seconds = perf_counter() - started
    return _evaluation(nll_nats, counted.counts, context, name, split, seconds)


class _Counted:
    """Encodes pieces and keeps the books of what went through."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.counts = SplitCounts(0, 0, 0, 0)

    def encode(self, piece: Piece) -> list[int]:
        """The ids of a piece in a stream."""
        ids = self._tokenizer.encode_piece(piece)
        unk_id = self._tokenizer.unk_id
        added = SplitCounts(
            tokens=len(ids),
            words=len(piece.text.split()),
            bytes=len(utf8(piece.text)),
            unknown=0 if unk_id is None else ids.count(unk_id),
        )
        self.counts = SplitCounts(*(a + b for a, b in zip(self.counts, added, strict=True)))
        return ids

    def texts(self, pieces: Iterable[Piece]) -> Iterator[Tokens]:
        """The ids of each line or document; at word level every line is one, as in a store."""
        text: list[int] = []
        for piece in pieces:
            text += self.encode(piece)
            if len(text) > LONGEST_TEXT:
                raise InputError(
                    f"a line of more than {LONGEST_TEXT:,} tokens is too much for one text; break "
                    "it into several, or evaluate with --context carried"
                )
            if piece.unfinished:
                continue
            if self._tokenizer.kind == "word":
                ids = np.array(text, dtype=np.int64)
                yield from _cut(ids, np.flatnonzero(ids == self._tokenizer.eos_id) + 1)
            else:
                yield text
            text = []
        if text:
            yield text


def pieces_of(
    source: str | os.PathLike[str] | Iterable[str | bytes],
) -> tuple[Iterator[Piece], str]:
    """What a user hands over as a text, as pieces, and what to call it.

    Args:
        source: a path, an open file, an iterable of lines, or (a str) the text itself.

    Raises:
        InputError: a str that is the name of a file, surely meant as a path; nothing at the path.
            Reading the pieces may raise it too.
    """
    if isinstance(source, os.PathLike):
        name = os.fspath(source)
        if os.path.isfile(name) and not name.lower().endswith(RECORD_ENDINGS):
            # Plain text, whatever its ending: benchmarks come as .tokens, notes as .md.
            return read_text_lines(name, READ_BYTES), name
        files = find_sources(name, longest_bytes=READ_BYTES)
        return (piece for file in files for piece in file.read()), name
    if not isinstance(source, Iterable):
        raise InputError(f"a text is a str, a path or lines, but this is {type(source).__name__}")
    if isinstance(source, str):
        if len(source) < 1024 and "\n" not in source and os.path.isfile(source):
            raise InputError(f"a str is taken as the text itself; for the file, Path({source!r})")
        source = re.findall(r"[^\n]*\n|[^\n]+", source)
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        # Text files translate \r\n unless told otherwise, and then count fewer bytes.
        source.reconfigure(newline="\n")  # type: ignore[union-attr]
    name = str(getattr(source, "name", "text"))
    return _line_pieces(source, name), name


def _line_pieces(lines: Iterable[str | bytes], name: str) -> Iterator[Piece]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            text = line.decode("utf-8") if isinstance(line, bytes) else line
            if not isinstance(text, str):
                raise InputError(f"{name}: line {number} is no text but {type(text).__name__}")
            if number == 1:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            yield Piece(text, ends_document=False)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not UTF-8 text, line {number} or later ({error.reason})"
        ) from error


def _cut(ids: npt.NDArray[np.integer[Any]], ends: npt.NDArray[np.intp]) -> Iterator[Tokens]:
    """The ids between consecutive ends, and what comes after the last one."""
    start = 0
    for end in (*ends.tolist(), len(ids)):
        if end > start:
            yield ids[start:end]
        start = end


def _evaluation(
    nll_nats: float, counts: SplitCounts, context: Context, name: str, split: str, seconds: float
) -> Evaluation:
    return Evaluation(
        nll_nats=nll_nats,
        tokens=counts.tokens,
        words=counts.words,
        bytes=counts.bytes,
        unknown=counts.unknown,
        context=context,
        model=name,
        split=split,
        seconds=seconds,
    )
