"""The tokens that all models read, and properties of each that follow from the text alone.

Shapes: N positions, E positions of a lane, T steps of a lane, B lanes, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.analyze.subjects import check_length
from sglm.text.store import TokenStore

SPLIT = "valid"
LANES = 32
WARM_STEPS = 64  # read before a lane's first position, because its state starts at zero
_LONGEST_STRIDE = 4  # nearer positions share most of their context
CLASSES = 8
_CLOSES = {")": "(", "]": "[", "}": "{"}
_FEWEST_OF_A_KIND = 50

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Positions in a text, each represented by the state after its token was read.

    Attributes:
        ids_TB: Token ids that are read, int64; the last row is only predicted.
        stride: Number of steps from one position to the next, after `WARM_STEPS`.
        index_N: Indices of the positions in the split, lane after lane.
        next_N: Ids of the tokens that are predicted at the positions.
    """

    ids_TB: Ids
    stride: int
    index_N: Ids
    next_N: Ids

    @property
    def is_first_half(self) -> npt.NDArray[np.bool_]:
        """A mask of the positions in the first half of the lanes, on which probes are fitted."""
        half = LANES // 2 * (len(self.index_N) // LANES)
        return np.arange(len(self.index_N)) < half


def choose_sample(store: TokenStore, positions: int) -> Sample:
    """Chooses positions that are spread evenly over a store's validation text.

    Args:
        store: A store that was made with the models' tokenizer.
        positions: N, a multiple of `LANES`.

    Raises:
        InputError: There is no such split, or it is too short.
    """
    each = positions // LANES
    check_length(
        store,
        SPLIT,
        tokens=LANES * (WARM_STEPS + each) + 1,
        purpose=f"{positions:,} positions in {LANES} lanes",
    )
    ids = store.ids(SPLIT)
    stride = min(_LONGEST_STRIDE, ((len(ids) - 1) // LANES - WARM_STEPS) // each)
    steps = WARM_STEPS + each * stride
    starts_B = np.linspace(0, len(ids) - 1 - steps, LANES).astype(np.int64)
    index_BE = starts_B[:, None] + WARM_STEPS + stride * np.arange(1, each + 1) - 1
    index_N = index_BE.reshape(-1)
    return Sample(
        ids_TB=ids[starts_B + np.arange(steps + 1)[:, None]].astype(np.int64),
        stride=stride,
        index_N=index_N,
        next_N=ids[index_N + 1].astype(np.int64),
    )


def frequency_classes(counts_V: Ids) -> Ids:
    """Assigns every token to a class by its frequency; classes cover equal shares of the text.

    Frequency stands in for the part of speech, which a text without labels does not give. The first
    class has the few most frequent tokens, the last one the many rare ones.

    Args:
        counts_V: Counts of the tokens in the training text.

    Returns:
        Class numbers from 0 on; fewer than `CLASSES` if single tokens make up more than a class.
    """
    order_V = np.argsort(-counts_V, kind="stable")
    shares_V = counts_V[order_V] / max(1, counts_V.sum())
    before_V = np.cumsum(shares_V) - shares_V
    class_V = np.empty(len(counts_V), np.int64)
    class_V[order_V] = np.minimum(CLASSES - 1, (before_V * CLASSES).astype(np.int64))
    return np.unique(class_V, return_inverse=True)[1].astype(np.int64)


def line_positions(store: TokenStore, sample: Sample) -> npt.NDArray[np.float64] | None:
    """Computes log2(1 + tokens since the last line end) at every position.

    Returns:
        `(N,)`; None if fewer than 50 of the positions are at a line end.
    """
    tokenizer = store.tokenizer()
    ids = store.ids(SPLIT)[: sample.index_N.max() + 1]
    ends = np.isin(ids, [tokenizer.line_end[-1], tokenizer.eos_id])
    if ends[sample.index_N].sum() < _FEWEST_OF_A_KIND:
        return None
    number = np.arange(len(ids))
    last_end = np.maximum.accumulate(np.where(ends, number, -1))
    places: npt.NDArray[np.float64] = np.log2(1 + (number - last_end)[sample.index_N])
    return places


def brackets_open(store: TokenStore, sample: Sample) -> npt.NDArray[np.bool_] | None:
    """Determines whether a bracket (round, square, curly) is open after each position.

    A closing bracket that does not match the last open one is ignored; `<eos>` closes all.

    Returns:
        `(N,)`; None if a half of the text has fewer than 50 positions with, or without, an open
        bracket.
    """
    tokenizer = store.tokenizer()
    marks = {}
    for token_id in range(tokenizer.vocab_size):
        brackets = [letter for letter in tokenizer.token(token_id) if letter in "()[]{}"]
        if brackets:
            marks[token_id] = brackets
    ids = store.ids(SPLIT)[: sample.index_N.max() + 1]
    open_ = _open_after(ids, marks, tokenizer.eos_id)[sample.index_N]
    halves = (open_[sample.is_first_half], open_[~sample.is_first_half])
    fewest = min(min(half.sum(), (~half).sum()) for half in halves)
    return open_ if fewest >= _FEWEST_OF_A_KIND else None


def _open_after(
    ids: "npt.NDArray[np.integer[Any]]", marks: dict[int, list[str]], eos_id: int
) -> npt.NDArray[np.bool_]:
    open_ = np.zeros(len(ids), np.bool_)
    stack: list[str] = []
    since = 0
    for index in np.flatnonzero(np.isin(ids, [*marks, eos_id])).tolist():
        open_[since:index] = bool(stack)
        since = index
        token_id = int(ids[index])
        if token_id == eos_id:
            stack.clear()
        for letter in marks.get(token_id, []):
            if letter not in _CLOSES:
                stack.append(letter)
            elif stack and stack[-1] == _CLOSES[letter]:
                stack.pop()
    open_[since:] = bool(stack)
    return open_
