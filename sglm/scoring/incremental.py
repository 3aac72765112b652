"""Scores of a text that grows piece by piece.

A tokenizer may cut the end of a text differently once more text follows. So only the text up to the
last position that no continuation can affect is settled; the tail after it is read again, together
with the next piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglm.errors import InputError
from sglm.scoring.predictor import Predictor, identity_of
from sglm.scoring.results import Score, make_score
from sglm.scoring.stream import CHUNK_STEPS, Ids, read_on
from sglm.text.tokenizer import Tokenizer
from sglm.text.user_text import checked_bytes

FOREIGN_STATE_MESSAGE = "this state belongs to another model; begin with"


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoringState:
    """The state of a model after the text so far, for `LanguageModel.extend` and `next`.

    A state is immutable, so a text can be continued from it in several ways.
    """

    predictor_state: Any
    """The predictor's own state, before `previous_id` is read."""
    identity: str
    """The identity of the predictor (`identity_of`)."""
    previous_id: int
    """The id of the last token before the tail; at the beginning of a text, `bos_id`."""
    tail: str
    """The end of the text, whose tokens may still change."""
    tail_ids: tuple[int, ...]
    """The present tokens of the tail."""
    tail_logprobs: tuple[float, ...]
    """The log-probabilities of these tokens, which are part of the scores so far."""
    in_word: bool
    """Whether the text ends inside a word, which may go on."""
    tail_start: int = 0
    """The number of characters before the tail."""

    def __repr__(self) -> str:
        return f"ScoringState(tail={self.tail[-40:]!r})"


def _check_state(predictor: Predictor[Any], state: object) -> None:
    """Checks that a state belongs to a predictor.

    Raises:
        InputError: It is not a state, or belongs to another model.
    """
    if not isinstance(state, ScoringState):
        raise InputError(
            f"a state comes from start() or extend(), but this is {type(state).__name__};"
            " extend takes the state first, then the text"
        )
    if state.identity != identity_of(predictor):
        raise InputError(f"{FOREIGN_STATE_MESSAGE} start() of this one")


def start_text(predictor: Predictor[Any], bos_id: int) -> ScoringState:
    """Returns the state before any text, about to read `bos_id`."""
    return ScoringState(
        predictor_state=predictor.start(1),
        identity=identity_of(predictor),
        previous_id=bos_id,
        tail="",
        tail_ids=(),
        tail_logprobs=(),
        in_word=False,
    )


def extend_text(
    predictor: Predictor[Any], tokenizer: Tokenizer, state: ScoringState, *, text: str
) -> tuple[Score, ScoringState]:
    """Scores what `text` adds to the text so far: see `LanguageModel.extend`.

    Raises:
        InputError: `text` is not a str or holds a lone surrogate; `state` is not a state, or
            belongs to another model.
    """
    _check_state(predictor, state)
    n_bytes = checked_bytes(text)
    tail = state.tail + text
    cut = tokenizer.safe_prefix(tail)
    settled, rest = tokenizer.encode(tail[:cut]), tokenizer.encode(tail[cut:])
    nll_settled_T, predictor_state = read_on(
        predictor, _array(state.previous_id, settled), state.predictor_state
    )
    previous_id = settled[-1] if settled else state.previous_id
    nll_rest_T, _ = read_on(predictor, _array(previous_id, rest), predictor_state)

    ids = settled + rest
    logprobs = [*(-nll_settled_T).tolist(), *(-nll_rest_T).tolist()]
    kept = _common_length(state.tail_ids, ids)
    start = state.tail_start
    offsets = [(start + first, start + last) for first, last in tokenizer.offsets(tail, ids)]
    n_words = len(text.split()) - (state.in_word and _starts_in_word(text))
    score = make_score(
        [tokenizer.token(token_id) for token_id in ids[kept:]],
        logprobs[kept:],
        [token_id == tokenizer.unk_id for token_id in ids[kept:]],
        n_words=n_words if tokenizer.is_text else None,
        n_bytes=n_bytes if tokenizer.is_text else None,
        offsets=offsets[kept:],
        withdrawn=state.tail_logprobs[kept:],
    )
    return score, ScoringState(
        predictor_state=predictor_state,
        identity=state.identity,
        previous_id=previous_id,
        tail=tail[cut:],
        tail_ids=tuple(rest),
        tail_logprobs=tuple(logprobs[len(settled) :]),
        in_word=not text[-1].isspace() if text else state.in_word,
        tail_start=start + cut,
    )


def next_logprobs(predictor: Predictor[Any], state: ScoringState) -> npt.NDArray[np.float32]:
    """Returns the log-probabilities of all next tokens, `(V,)`: see `LanguageModel.next`.

    Raises:
        InputError: `state` is not a state, or belongs to another model.
    """
    _check_state(predictor, state)
    ids_T1 = torch.tensor([state.previous_id, *state.tail_ids], device="cpu")[:, None]
    *before, last_T1 = torch.split(ids_T1, CHUNK_STEPS)
    predictor_state = state.predictor_state
    for chunk_T1 in before:
        _, predictor_state = predictor.read(chunk_T1, None, predictor_state)
    blocks, _ = predictor.distributions(last_T1, predictor_state, last_steps=1)
    ((_, logprobs_1V),) = blocks
    return logprobs_1V[0].float().cpu().numpy().copy()


def _array(first: int, ids: Sequence[int]) -> Ids:
    return np.array([first, *ids], dtype=np.int64)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the number of leading ids that are equal."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _starts_in_word(text: str) -> bool:
    return bool(text) and not text[0].isspace()
