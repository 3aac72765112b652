"""Scores of separate texts, and of the lines of a running text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sglm.errors import InputError
from sglm.scoring.batch import packed_nlls
from sglm.scoring.distribution import (
    DistributionMeasures,
    measure_distributions,
    measure_packed_texts,
)
from sglm.scoring.predictor import Predictor, State
from sglm.scoring.results import Score, make_score
from sglm.scoring.stream import CHUNK_STEPS, Ids
from sglm.text.tokenizer import Tokenizer
from sglm.text.user_text import TextError, checked_bytes, encode_texts

# The number of lines of a running text that are read in one call. The overhead of a call is about
# the cost of thirty tokens.
LINES_PER_CALL = 64


def score_texts(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    sizes: Sequence[int],
    names: Sequence[str],
    bos: bool,
    eos: bool,
    bos_id: int,
    distribution: bool,
    context: str,
) -> list[Score]:
    """Scores texts, each on its own: see `LanguageModel.score` for arguments not listed here.

    Args:
        predictor, tokenizer: The model and its tokenizer.
        texts, sizes: The texts, and the number of bytes of each in UTF-8.
        names: The readable token of each id.
        bos_id: The id of the token that stands before each text and, if `eos`, after it.
    """
    state, first_id, context = _read_context(predictor, tokenizer, context, bos_id=bos_id)
    encoded = encode_texts(tokenizer, texts, before=context)
    ids, lengths = _pack(encoded, first=[first_id] * bos, last=[bos_id] * eos)
    ids_N, lengths_S = np.array(ids, dtype=np.int64), np.array(lengths, dtype=np.int64)
    begins = tokenizer.word_beginnings if distribution else None
    logprobs, recorded = _read(predictor, ids_N, lengths_S, state=state, begins=begins)
    # For all texts at once, because there may be many short ones.
    tokens = list(map(names.__getitem__, ids))
    unk = (ids_N == tokenizer.unk_id).tolist()
    scores = []
    end = 0
    for text, size, length in zip(texts, sizes, lengths, strict=True):
        own_ids = ids[end + bos : end + length - eos]
        end += length
        offsets = _offsets(tokenizer, text, own_ids, context=context)
        offsets = (offsets + [(len(text), len(text))] * eos)[not bos :]
        scored = slice(end - len(offsets), end)
        score = make_score(
            tokens[scored],
            logprobs[scored],
            unk[scored],
            n_words=len(text.split()) if tokenizer.is_text else None,
            n_bytes=size if tokenizer.is_text else None,
            offsets=offsets,
            text=text,
            # Without bos the first token is not scored, so some bytes have no nats.
            has_unscored_bytes=not bos,
        )
        if recorded is not None:
            # A text without context begins a word, unless it is a fragment (without bos).
            goes_on = bool(context) or state is not None or not bos
            open_word = goes_on and bool(offsets) and tokenizer.begins_word(ids[scored.start])
            score = _with_measures(
                score, recorded, scored, first_boundary_certain=not open_word, ended=eos
            )
        scores.append(score)
    if not tokenizer.marks_words:
        return [replace(score, boundaries=None) for score in scores]
    return scores


def _read(
    predictor: Predictor[State],
    ids_N: Ids,
    lengths_S: Ids,
    *,
    state: State | None,
    begins: list[bool] | None,
) -> tuple[list[float], DistributionMeasures | None]:
    """Returns the log-probability of each id and, if `begins` is given, the measures of the
    distributions."""
    if begins is None:
        return (-packed_nlls(predictor, ids_N, lengths_S, state=state)).tolist(), None
    begins_V = torch.tensor(begins, device="cpu")
    recorded = measure_packed_texts(predictor, ids_N, lengths_S, state=state, begins_V=begins_V)
    # An entry of `recorded` lies at the id before the one that is predicted: shift by one.
    return [0.0, *recorded.logprob.tolist()], recorded


def _read_context(
    predictor: Predictor[State], tokenizer: Tokenizer, context: str, *, bos_id: int
) -> tuple[State | None, int, str]:
    """Reads the settled part of a context: its tokens cannot be changed by any text after it.

    Returns:
        The state before the last settled token, the id of that token, and the rest of the context.
        Without settled tokens: None, `bos_id` and the whole context.
    """
    settled = tokenizer.safe_prefix(context)
    ids = tokenizer.encode(context[:settled])
    if not ids:
        return None, bos_id, context
    ids_T1 = torch.tensor([bos_id, *ids[:-1]], device="cpu")[:, None]
    state = predictor.start(1)
    for chunk_T1 in torch.split(ids_T1, CHUNK_STEPS):
        _, state = predictor.read(chunk_T1, None, state)
    return state, ids[-1], context[settled:]


def _pack(
    texts: Sequence[list[int]], *, first: list[int], last: list[int]
) -> tuple[list[int], list[int]]:
    """Returns the ids of all texts end to end, with `first` and `last` around each, and the number
    of ids of each."""
    ids: list[int] = []
    lengths: list[int] = []
    for encoded in texts:
        lengths.append(len(first) + len(encoded) + len(last))
        ids += first
        ids += encoded
        ids += last
    return ids, lengths


def _offsets(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], *, context: str
) -> list[tuple[int, int]]:
    """Returns the offsets in `text` of those tokens of `context + text` that end in `text`."""
    if not context:
        return tokenizer.offsets(text, ids)
    before = len(context)
    return [
        (max(0, start - before), end - before)
        for start, end in tokenizer.offsets(context + text, ids)
        if end > before
    ]


def _with_measures(
    score: Score,
    recorded: DistributionMeasures,
    scored: slice,
    *,
    first_boundary_certain: bool,
    ended: bool,
) -> Score:
    """Adds ranks, entropies and boundaries to a score.

    Args:
        score: The score of one text.
        recorded: The measures at the ids of all texts.
        scored: The scored ids of this text.
        first_boundary_certain: Whether the boundary at the first token is 0: nothing stands before
            it, or it lies inside a word.
        ended: Whether the end of the text was scored, after which the boundary is 0.
    """
    if not score.n_tokens:
        return replace(score, ranks=[], entropies=[], boundaries=[0.0])
    before = slice(scored.start - 1, scored.stop - 1)
    boundaries = recorded.boundary[scored.start - 1 : scored.stop].tolist()
    if ended:
        boundaries[-1] = 0.0
    return replace(
        score,
        ranks=recorded.rank[before].tolist(),
        entropies=recorded.entropy[before].tolist(),
        boundaries=[0.0, *boundaries[1:]] if first_boundary_certain else boundaries,
    )


def running_scores(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    lines: Iterable[str | list[str]],
    *,
    names: Sequence[str],
    bos_id: int,
) -> Iterator[Score]:
    """Scores the lines of a running text: see `LanguageModel.score_running`."""
    begins_V = torch.tensor(tokenizer.word_beginnings, device="cpu")
    state, previous_id, before = predictor.start(1), bos_id, 0
    for group in _line_groups(lines):
        encoded, problem = _encode_until_error(tokenizer, group, before=before)
        before += len(group)
        ids, lengths = _pack(encoded, first=[], last=tokenizer.line_end)
        if ids:
            read_N = np.array([previous_id, *ids], dtype=np.int64)
            recorded, state = measure_distributions(
                predictor, read_N[:-1, None], read_N[1:, None], state=state, begins_V=begins_V
            )
            previous_id = ids[-1]
            end = 0
            for line, own_ids, length in zip(group, encoded, lengths, strict=False):
                read = DistributionMeasures._make(
                    field[end : end + length, 0] for field in recorded
                )
                end += length
                yield _running_score(tokenizer, line, ids=own_ids, read=read, names=names)
        if problem is not None:
            raise problem


def _line_groups(lines: Iterable[str | list[str]]) -> Iterator[Sequence[Any]]:
    """Yields groups of lines to read together: parts of the lists, or single lines."""
    whole = isinstance(lines, list | tuple) and not any(isinstance(i, list | tuple) for i in lines)
    for item in [lines] if whole else lines:
        if isinstance(item, list | tuple):
            starts = range(0, len(item), LINES_PER_CALL)
            yield from (item[start : start + LINES_PER_CALL] for start in starts)
        else:
            yield [item]


def _encode_until_error(
    tokenizer: Tokenizer, lines: Sequence[Any], *, before: int
) -> tuple[list[list[int]], InputError | None]:
    """Encodes lines up to the first that cannot be encoded.

    Args:
        tokenizer: The tokenizer.
        lines: The lines.
        before: The number of lines before these, for the line number in an error.

    Returns:
        The ids of each line before that one, and the error it caused; None: no line caused one.
    """
    encoded: list[list[int]] = []
    for number, line in enumerate(lines, start=before + 1):
        try:
            checked_bytes(line, number)
        except InputError as error:
            return encoded, error
        try:
            encoded.append(tokenizer.encode(line))
        except InputError as error:
            return encoded, TextError(number, problem=str(error))
    return encoded, None


def _running_score(
    tokenizer: Tokenizer,
    line: str,
    *,
    ids: list[int],
    read: DistributionMeasures,
    names: Sequence[str],
) -> Score:
    """Returns the score of a line.

    Args:
        tokenizer: The tokenizer.
        line: The line.
        ids: The ids of its tokens.
        read: The measures at these tokens and at the line end, which is not scored.
        names: The readable token of each id.
    """
    count = len(ids)
    logprob, rank, entropy, boundary = (field.tolist() for field in read)
    score = make_score(
        [names[i] for i in ids],
        logprob[:count],
        [i == tokenizer.unk_id for i in ids],
        n_words=len(line.split()) if tokenizer.is_text else None,
        n_bytes=len(line.encode()) if tokenizer.is_text else None,
        offsets=tokenizer.offsets(line, ids),
        text=line,
    )
    return replace(
        score,
        ranks=rank[:count],
        entropies=entropy[:count],
        boundaries=[0.0, *boundary[1 : count + 1]] if tokenizer.marks_words else None,
    )
