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

# Steps of one call of a predictor, and between two looks at `should_stop`: bounds what is held of
# a text at a time.
CHUNK_STEPS = 256


class StoppedReading(Exception):
    """Somebody asked to stop in the midst of a text; there is no result."""


def never() -> bool:
    """Nobody asks to stop."""
    return False


def stream_nll(
    predictor: Predictor[Any],
    ids: Stream,
    eos_id: int,
    *,
    chunk_steps: int = CHUNK_STEPS,
    should_stop: Callable[[], bool] = never,
    share: tuple[int, int] = (0, 1),
) -> float:
    """The negative log-likelihood of one text, read from beginning to end by a single lane.

    The state starts anew, is fed `<eos>`, and is carried through; the result does not depend on
    `chunk_steps` beyond rounding. Memory is bounded by the chunk, whatever the text's length.

    Args:
        predictor: reads it.
        ids: the whole text as one array (memory-mapped or not), or as consecutive pieces.
        eos_id: what the first token is predicted from.
        chunk_steps: steps read at a time.
        should_stop: asked before every chunk.
        share: `(which, of how many)`: only every so manieth chunk is scored, so that several
            processes can do it together; their results add up to the whole.

    Returns:
        The float64 sum over all scored tokens in nats.

    Raises:
        StoppedReading: `should_stop` said so.
    """
    nll_nats = 0.0
    state = predictor.start(1)
    previous = eos_id
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
    """Reads `ids` but the last from `state` on; scores each but the first.

    Args:
        predictor: reads them.
        ids: at least one.
        state: of one lane.

    Returns:
        Nats per token, one number fewer than ids; the state in which the last id is yet to be read.
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
