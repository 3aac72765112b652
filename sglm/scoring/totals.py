"""Sums over the tokens of whole texts, for corpora: no lists of tokens are kept."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sglm.errors import InputError
from sglm.scoring.batch import packed_nlls
from sglm.scoring.predictor import Predictor
from sglm.scoring.stream import Ids
from sglm.text.tokenizer import Tokenizer, utf8
from sglm.text.user_text import TextError

# The most characters of a text that are encoded together: a list of their tokens or words takes
# many times the memory of the text.
ENCODED_CHARACTERS = 1 << 16


class TextTotals(NamedTuple):
    """The sums over one text.

    Attributes:
        nll_nats: The negative log-likelihood of all scored tokens.
        tokens: The number of scored tokens.
        words: The number of words; None if the text is ids.
        bytes: The number of bytes in UTF-8; None if the text is ids.
        unknown: The number of scored tokens that are `<unk>`.
        has_unscored_bytes: Whether `nll_nats` lacks some of the bytes: those of the first token, if
            that is not scored, or those behind an `<unk>`.
    """

    nll_nats: float
    tokens: int
    words: int | None
    bytes: int | None
    unknown: int
    has_unscored_bytes: bool


def text_totals(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    bos: bool = True,
    eos: bool = False,
    bos_id: int | None = None,
    progress: Callable[[float], object] = lambda share: None,
) -> list[TextTotals]:
    """Scores texts, each on its own from the start state; the sums equal `LanguageModel.score`'s.

    Args:
        predictor, tokenizer: The model and its tokenizer.
        texts: The texts.
        bos, eos: See `LanguageModel.score`.
        bos_id: The id of the token that stands before each text. None: `<eos>`.
        progress: See `packed_nlls`.

    Raises:
        TextError: The tokenizer cannot encode a text, or a text holds a lone surrogate.
    """
    first_id = tokenizer.eos_id if bos_id is None else bos_id
    before, after = [first_id] * bos, [first_id] * eos
    parts: list[Ids] = []
    lengths: list[int] = []
    for number, text in enumerate(texts, start=1):
        try:
            ids = encode_in_parts(tokenizer, text)
        except InputError as error:
            raise TextError(number, problem=str(error)) from error
        parts += [np.array(before, dtype=np.int64), ids, np.array(after, dtype=np.int64)]
        lengths.append(bos + len(ids) + eos)
    if not texts:
        return []
    ids_N, lengths_S = np.concatenate(parts), np.array(lengths, dtype=np.int64)
    nats_S = _sums(packed_nlls(predictor, ids_N, lengths_S, progress=progress), lengths_S)
    # Without bos the first token of a text is read, but not scored.
    first_S = np.cumsum(lengths_S) - lengths_S
    scored_N = np.ones(len(ids_N), dtype=bool)
    scored_N[first_S[lengths_S > 0]] = False
    unknown = tokenizer.unk_id if tokenizer.unk_id is not None else -1
    unknown_S = _sums((ids_N == unknown) & scored_N, lengths_S)
    return [
        TextTotals(
            float(nats),
            max(0, length - 1),
            _words(text) if tokenizer.is_text else None,
            len(utf8(text)) if tokenizer.is_text else None,
            int(count),
            not bos or bool(count > 0),
        )
        for text, nats, length, count in zip(texts, nats_S, lengths, unknown_S, strict=True)
    ]


def encode_in_parts(tokenizer: Tokenizer, text: str) -> Ids:
    """Returns `tokenizer.encode(text)`; a long text is encoded in parts, which changes no token."""
    parts = []
    start, size = 0, ENCODED_CHARACTERS
    while len(text) - start > size:
        part = text[start : start + size]
        settled = tokenizer.safe_prefix(part)
        if settled == 0:  # the part lies inside one long word
            size *= 2
            continue
        parts.append(np.array(tokenizer.encode(part[:settled]), dtype=np.int64))
        start, size = start + settled, ENCODED_CHARACTERS
    parts.append(np.array(tokenizer.encode(text[start:]), dtype=np.int64))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _words(text: str) -> int:
    if len(text) <= ENCODED_CHARACTERS:
        return len(text.split())
    return sum(1 for _ in re.finditer(r"\S+", text))  # slower, but builds no list of words


def _sums(values_N: Any, lengths_S: Ids) -> Any:
    """Returns the sum over each text, `(S,)`; texts may be empty."""
    sums_S = np.zeros(len(lengths_S))
    some = lengths_S > 0
    starts = (np.cumsum(lengths_S) - lengths_S)[some]
    if len(starts):
        sums_S[some] = np.add.reduceat(np.asarray(values_N, dtype=np.float64), starts)
    return sums_S
