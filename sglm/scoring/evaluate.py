"""Evaluation of a model on a split or a text: the likelihood, together with the text's counts.

The nats are computed in `sglm.scoring.stream` and `sglm.scoring.batch`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError
from sglm.scoring.batch import Tokens, texts_nll
from sglm.scoring.predictor import Predictor
from sglm.scoring.results import Context, Evaluation, Half
from sglm.scoring.stream import never, stream_nll
from sglm.text.encoder import Encoder
from sglm.text.lines import Piece
from sglm.text.overlap import LineHashes
from sglm.text.regroup import regroup
from sglm.text.store import SplitCounts, TokenStore
from sglm.text.tokenizer import Tokenizer

# The most tokens of one text that are held in memory.
LONGEST_TEXT = 1 << 25


def with_overlap(
    evaluation: Evaluation, lines: LineHashes | None, training: LineHashes | None
) -> Evaluation:
    """Adds the number of lines of the evaluated text that were trained on.

    Args:
        evaluation: The evaluation.
        lines: The lines of the text. None: they were not counted, and nothing is added.
        training: The lines of the training text. None: unknown.
    """
    if lines is None:
        return evaluation
    known = None if training is None else lines.overlap(training)
    return replace(evaluation, lines=lines.line_count, lines_in_training=known)


def evaluate_split(
    predictor: Predictor[Any],
    store: TokenStore,
    split: str,
    *,
    context: Context = "carried",
    name: str = "",
    half: Half = None,
    bos_id: int | None = None,
    should_stop: Callable[[], bool] = never,
    shard: tuple[int, int] = (0, 1),
) -> Evaluation:
    """Evaluates a model on a split of a store that its own tokenizer made.

    Args:
        predictor: The model.
        store: The store (see `TokenStore.open`).
        split: The name of one of its splits.
        context: "carried": the state runs through the split. "reset": each text on its own; a text
            ends in `<eos>` (a line at word level, otherwise a document) or, in a split without
            `<eos>`, in `bos_id` (a line).
        name: The name of the model in the result.
        half: "first" or "second": only that half of the split, as a text of its own. None: all.
        bos_id: The id that is read before the split, or before each text. None: `<eos>`.
        should_stop: Is called from time to time.
        shard: `(i, n)`: only shard i of n (from 0) is scored, so that n processes can cooperate.

    Returns:
        The evaluation: `nll_nats` is that of the shard, all counts are those of the split or half.

    Raises:
        InputError: There is no such split, or `context` is "reset" and no text ends in the split.
        StoppedReading: `should_stop` returned true.
    """
    started = perf_counter()
    eos_id = store.tokenizer().eos_id
    first_id = eos_id if bos_id is None else bos_id
    ids = half_of(store.ids(split), half, eos_id=eos_id, bos_id=first_id)
    counts = store.counts(split) if half is None else _counts(ids, store.tokenizer())
    if context == "carried":
        nll_nats = stream_nll(predictor, ids, first_id, should_stop=should_stop, shard=shard)
    else:
        ends = text_ends(ids, eos_id=eos_id, bos_id=first_id)
        if len(ends) == 0:
            raise InputError(
                f"{store.folder}: the split {split!r} is running text, its ids do not show where "
                "texts begin; give a file of its lines with --text FILE --context reset, and set"
                " such a file aside from the start (sglm prep --test FILE)"
            )
        texts = _cut(ids, ends)
        nll_nats = texts_nll(predictor, texts, first_id, should_stop=should_stop, shard=shard)
    return Evaluation(
        nll_nats=nll_nats,
        **counts._asdict(),
        context=context,
        model=name,
        split=split if half is None else f"{split}, {half} half",
        seconds=perf_counter() - started,
    )


def text_ends(
    ids: npt.NDArray[np.integer[Any]], *, eos_id: int, bos_id: int
) -> npt.NDArray[np.intp]:
    """Returns the ends of the texts in a split: after each `<eos>`; without any, after each
    `bos_id`."""
    ends = np.flatnonzero(ids == eos_id) + 1
    return ends if len(ends) else np.flatnonzero(ids == bos_id) + 1


def half_of(
    ids: npt.NDArray[np.integer[Any]], half: Half, *, eos_id: int, bos_id: int
) -> npt.NDArray[np.integer[Any]]:
    """Returns the first or second half of a split's ids, or all of them (None).

    The cut is at the first end of a text at or after the middle; if no text ends there before the
    end of the split, it is in the middle.
    """
    if half is None:
        return ids
    middle = len(ids) // 2
    ends = text_ends(ids, eos_id=eos_id, bos_id=bos_id)
    later = ends[(middle <= ends) & (ends < len(ids))]
    cut = int(later[0]) if len(later) else middle
    return ids[:cut] if half == "first" else ids[cut:]


def _counts(ids: npt.NDArray[np.integer[Any]], tokenizer: Tokenizer) -> SplitCounts:
    """Counts a part of a split from its ids. Words are those of the decoded text, in which `<unk>`
    is written out."""
    text = tokenizer.decode(ids.tolist())
    unknown = 0 if tokenizer.unk_id is None else int((ids == tokenizer.unk_id).sum())
    # From tokens without white space, the original number of bytes cannot be recovered.
    known = tokenizer.lossless and not unknown
    words, size = len(text.split()), len(text.encode()) if known else 0
    counts = SplitCounts(tokens=len(ids), words=words, bytes=size, unknown=unknown)
    return counts if tokenizer.is_text else counts.without_text()


def evaluate_pieces(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    pieces: Iterable[Piece],
    *,
    context: Context = "carried",
    name: str = "",
    split: str = "text",
    bos_id: int | None = None,
) -> Evaluation:
    """Evaluates a model on a stream of text; memory stays bounded, whatever its length.

    The result equals that of `evaluate_split` for a store made from the same pieces, except that
    with context "reset" each line of running text is a text of its own, whatever the tokenizer.

    Args:
        predictor: The model.
        tokenizer: Its tokenizer.
        pieces: The text.
        context, name, bos_id: As for `evaluate_split`.
        split: The name of the text in the result.

    Raises:
        InputError: There is no text, or it is not UTF-8; with context "reset", a line has more than
            `LONGEST_TEXT` tokens.
    """
    started = perf_counter()
    encoder = _CountingEncoder(tokenizer, name="stdin" if split == "-" else split)
    first_id = tokenizer.eos_id if bos_id is None else bos_id
    if context == "carried":
        ids = (encoder.encode(piece) for piece in regroup(pieces))
        nll_nats = stream_nll(predictor, ids, first_id)
    else:
        nll_nats = texts_nll(predictor, encoder.texts(pieces), first_id)
    if encoder.counts.tokens == 0:
        raise InputError(f"{split}: no text to evaluate; give a file that holds some")
    return Evaluation(
        nll_nats=nll_nats,
        **encoder.counts._asdict(),
        context=context,
        model=name,
        split=split,
        seconds=perf_counter() - started,
    )


class _CountingEncoder:
    """An encoder of pieces that also counts their tokens, words and bytes."""

    def __init__(self, tokenizer: Tokenizer, *, name: str) -> None:
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer, name=name)
        self._sums = [0, 0, 0, 0]

    @property
    def counts(self) -> SplitCounts:
        """The counts of all pieces that were encoded."""
        counts = SplitCounts(*self._sums)
        return counts if self._tokenizer.is_text else counts.without_text()

    def encode(self, piece: Piece) -> list[int]:
        """Returns the ids of the next piece of a stream."""
        _, ids, words, text_bytes = self._encoder.encode(piece)
        unk_id = self._tokenizer.unk_id
        unknown = 0 if unk_id is None else ids.count(unk_id)
        added = (len(ids), words, text_bytes, unknown)  # as in SplitCounts
        self._sums = [a + b for a, b in zip(self._sums, added, strict=True)]
        return ids

    def texts(self, pieces: Iterable[Piece]) -> Iterator[Tokens]:
        """Yields the ids of each line or document; each `<eos>` ends one, as in a store."""
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
            ids = np.array(text, dtype=np.int64)
            yield from _cut(ids, np.flatnonzero(ids == self._tokenizer.eos_id) + 1)
            text = []
        if text:
            yield text


def _cut(ids: npt.NDArray[np.integer[Any]], ends: npt.NDArray[np.intp]) -> Iterator[Tokens]:
    """Yields the ids between consecutive ends, and those after the last end; none is empty."""
    start = 0
    for end in (*ends.tolist(), len(ids)):
        if end > start:
            yield ids[start:end]
        start = end
