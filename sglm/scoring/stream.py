"""One long text through a predictor: token ids in, nats out.

Shapes: T time. Likelihoods are in nats, float64. Every token is scored exactly once; how the work
is cut into chunks changes its speed, never a result beyond rounding. Nothing here draws a random
number.
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

# Steps of one call of a predictor, and between two calls of `should_stop`. Bounds how much of a
# text is in memory at a time.
CHUNK_STEPS = 256


class StoppedReading(Exception):
    """`should_stop` returned true before the end of a text; there is no result."""


def never() -> bool:
    """The default of `should_stop`: reading is never stopped."""
    return False


def stream_nll(
    predictor: Predictor[Any],
    ids: Stream,
    bos_id: int,
    *,
    chunk_steps: int = CHUNK_STEPS,
    should_stop: Callable[[], bool] = never,
    share: tuple[int, int] = (0, 1),
) -> float:
    """The negative log-likelihood of one text, read from beginning to end by a single lane.

    The state starts anew, is fed `bos_id`, and is carried through; the result does not depend on
    `chunk_steps` beyond rounding. Memory is bounded by the chunk, whatever the text's length.

    Args:
        predictor: reads it.
        ids: the whole text as one array (memory-mapped or not), or as consecutive pieces.
        bos_id: what the first token is predicted from.
        chunk_steps: steps read at a time.
        should_stop: asked before every chunk.
        share: `(i, n)`: only every n-th chunk is scored, from number i (from 0) on, so that n
            processes can share the work; their results add up to the whole.

    Returns:
        The float64 sum over all scored tokens in nats.

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
        if number % share[1] == share[0]:
            nll_T, state = read_on(predictor, window, state)
            nll_nats += float(nll_T.sum())
        else:
            _, state = predictor.read(torch.from_numpy(window[:-1, None]), None, state)
        previous = int(chunk[-1])
    return nll_nats


def read_on(predictor: Predictor[State], ids: Ids, state: State) -> tuple[Nats, State]:
    """Reads all of `ids` except the last, from `state`; scores all except the first.

    Args:
        predictor: reads them.
        ids: at least one.
        state: of one lane.

    Returns:
        Nats per token, one number fewer than ids; the state before the last id is read.
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
    """A stream cut anew into pieces of `steps` ids (the last may be shorter, none is empty)."""
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
