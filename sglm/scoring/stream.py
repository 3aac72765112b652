"""The likelihood of one long text, which a predictor reads in chunks.

Shapes: T time. Likelihoods are in nats, float64. Every token is scored exactly once; the size of
the chunks changes the speed, but the results only by rounding. Nothing here draws a random number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglm.scoring.predictor import Predictor, State

Ids = npt.NDArray[np.int64]
Nats = npt.NDArray[np.float64]
Stream = npt.NDArray[np.integer[Any]] | Iterable[Sequence[int]]

# Steps in one call of a predictor, and between two calls of `should_stop`. Bounds the part of a
# text that is in memory.
CHUNK_STEPS = 256


class StoppedReading(Exception):
    """The end of an evaluation without a result, because `should_stop` returned true."""


def never() -> bool:
    """Returns False: the default of `should_stop`, with which reading is never stopped."""
    return False


def stream_nll(
    predictor: Predictor[Any],
    ids: Stream,
    bos_id: int,
    *,
    chunk_steps: int = CHUNK_STEPS,
    should_stop: Callable[[], bool] = never,
    shard: tuple[int, int] = (0, 1),
) -> float:
    """Computes the negative log-likelihood of one text, read in one lane from beginning to end.

    The text is read from the start state, after `bos_id`, and the state is carried through. Memory
    is bounded by the size of a chunk, whatever the length of the text.

    Args:
        predictor: The model.
        ids: The whole text as one array (memory-mapped or not), or as consecutive pieces.
        bos_id: The id that is read before the text; the first token is predicted from it.
        chunk_steps: The number of steps that are read in one call.
        should_stop: Is called before each chunk.
        shard: `(i, n)`: only chunks i, i + n, i + 2n, … (counted from 0) are scored, so that n
            processes can share the work; their results add up to that of the whole text.

    Returns:
        The float64 sum over all scored tokens, in nats.

    Raises:
        StoppedReading: `should_stop` returned true.
    """
    nll_nats = 0.0
    state = predictor.start(1)
    previous = bos_id
    for number, chunk in enumerate(_chunks(ids, chunk_steps)):
        if should_stop():
            raise StoppedReading
        window = np.concatenate(([previous], chunk))
        if number % shard[1] == shard[0]:
            nll_T, state = read_on(predictor, window, state)
            nll_nats += float(nll_T.sum())
        else:
            _, state = predictor.read(torch.from_numpy(window[:-1, None]), None, state)
        previous = int(chunk[-1])
    return nll_nats


def read_on(predictor: Predictor[State], ids: Ids, state: State) -> tuple[Nats, State]:
    """Continues from a state: reads all of `ids` except the last, and scores all except the first.

    Args:
        predictor: The model.
        ids: The ids, at least one.
        state: The state before the first id, in one lane.

    Returns:
        The nats of each scored token, one fewer than ids; and the state before the last id.
    """
    nlls = [np.empty(0)]
    for start in range(0, len(ids) - 1, CHUNK_STEPS):
        window_T1 = ids[start : start + CHUNK_STEPS + 1, None]
        inputs_T1, targets_T1 = torch.from_numpy(window_T1[:-1]), torch.from_numpy(window_T1[1:])
        logprobs_T1, state = predictor.read(inputs_T1, targets_T1, state)
        assert logprobs_T1 is not None  # there are targets
        nlls.append(-logprobs_T1.cpu().numpy()[:, 0])
    return np.concatenate(nlls), state


def _chunks(ids: Stream, steps: int) -> Iterator[Ids]:
    """Cuts a stream into chunks of `steps` ids (the last may be shorter; none is empty)."""
    if isinstance(ids, np.ndarray):
        for start in range(0, len(ids), steps):
            yield ids[start : start + steps].astype(np.int64)
        return
    waiting = np.empty(0, dtype=np.int64)
    for piece in ids:
        waiting = np.concatenate((waiting, np.asarray(piece, dtype=np.int64)))
        while len(waiting) >= steps:
            yield waiting[:steps]
            waiting = waiting[steps:]
    if len(waiting):
        yield waiting
