"""Token ids in, nats out: the negative log-likelihood of a stream.

Shapes: T time, B lanes, V vocabulary, H features, N tokens in any arrangement. Likelihoods are in
nats, per token in the model's float type, summed in float64. Every token is scored exactly once;
how the work is cut into chunks and lanes changes its speed, never a result beyond rounding.
Nothing here draws a random number.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.model.language_model import LSTMLanguageModel
from sglm.model.linear import ROWS_STEP
from sglm.model.state import LSTMState
from sglm.runtime.device import full_float32
from sglm.runtime.process import settle_after_fork

Ids = npt.NDArray[np.int64]
Stream = npt.NDArray[np.integer[Any]] | Iterable[Sequence[int]]

# Steps between two looks at `should_stop`; what is held of the features at a time.
CHUNK_STEPS = 256
# Rows whose logits are held at a time, and the most entries these may have (16 MB). Fewer rows
# make slower products, more no faster ones.
LOGIT_ROWS = 512
LOGIT_ENTRIES = 2**22


@overload
def evaluate_stream(
    model: LSTMLanguageModel,
    ids: Stream,
    eos_id: int,
    *,
    chunk_steps: int = CHUNK_STEPS,
    should_stop: None = None,
    share: tuple[int, int] = (0, 1),
) -> float: ...
@overload
def evaluate_stream(
    model: LSTMLanguageModel,
    ids: Stream,
    eos_id: int,
    *,
    chunk_steps: int = CHUNK_STEPS,
    should_stop: Callable[[], bool],
    share: tuple[int, int] = (0, 1),
) -> float | None: ...
def evaluate_stream(
    model: LSTMLanguageModel,
    ids: Stream,
    eos_id: int,
    *,
    chunk_steps: int = CHUNK_STEPS,
    should_stop: Callable[[], bool] | None = None,
    share: tuple[int, int] = (0, 1),
) -> float | None:
    """The negative log-likelihood of one stream, read from beginning to end by a single lane.

    The state starts at zero, is fed `<eos>`, and is carried through; the result does not depend on
    `chunk_steps` beyond rounding. Memory is bounded by the chunk, whatever the stream's length.

    Args:
        model: in any mode; it is evaluated without dropout and left in the mode it was in.
        ids: the whole stream as one array (memory-mapped or not), or as consecutive pieces.
        eos_id: what the first token is predicted from.
        chunk_steps: steps read at a time.
        should_stop: asked before every chunk.
        share: `(which, of how many)`: only every so manieth chunk is scored, so that several
            processes can do it together; their results add up to the whole.

    Returns:
        The float64 sum over all scored tokens in nats; None if `should_stop` said so.
    """
    nll_nats = 0.0
    with evaluating(model):
        state = model.start_state(1)
        previous = eos_id
        for number, chunk in enumerate(_chunks(ids, chunk_steps)):
            if should_stop is not None and should_stop():
                return None
            window = np.concatenate(([previous], chunk))
            if number % share[1] == share[0]:
                nll_T, state = read_on(model, window, state)
                nll_nats += float(nll_T.sum())
            else:
                inputs_T = torch.from_numpy(window[:-1]).to(model.embedding.device)
                _, state = model.features(inputs_T[:, None], state)
            previous = int(chunk[-1])
    return nll_nats


def read_on(
    model: LSTMLanguageModel, ids: Ids, state: LSTMState
) -> tuple[npt.NDArray[np.float64], LSTMState]:
    """Reads `ids` but the last from `state` on; scores each but the first.

    Args:
        model: see `evaluate_stream`.
        ids: at least one.
        state: of one lane.

    Returns:
        Nats per token, one number fewer than ids; the state in which the last id is yet to be read.
    """
    nlls = [np.empty(0)]
    with evaluating(model):
        for start in range(0, len(ids) - 1, CHUNK_STEPS):
            window = torch.from_numpy(ids[start : start + CHUNK_STEPS + 1])
            window = window.to(model.embedding.device)
            features_T1H, state = model.features(window[:-1, None], state)
            nlls.append(token_nll(model, features_T1H[:, 0], window[1:]).cpu().numpy())
    return np.concatenate(nlls), state


def token_nll(model: LSTMLanguageModel, features_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Nats of each target, float64 `(N,)`; logits exist for a bounded number of rows at a time."""
    parts = [
        -logprobs_MV.gather(1, targets_N[rows, None])[:, 0].double()
        for rows, logprobs_MV in predictions(model, features_NH)
    ]
    return torch.cat(parts) if parts else targets_N.new_empty(0, dtype=torch.float64)


def predictions(model: LSTMLanguageModel, features_NH: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Log-probabilities `(M, V)` of all tokens after each row, a bounded number of rows at a time.

    Float32 at least: sums of exponentials over thousands of words need it (logits may be half).
    Not to be differentiated.
    """
    size = max(1, min(LOGIT_ROWS, LOGIT_ENTRIES // model.shape.vocab_size))
    if size > ROWS_STEP:
        size -= size % ROWS_STEP
    start, total = 0, len(features_NH)
    while start < total:
        left = total - start
        # The last rows in two parts, so that the larger one goes the faster way.
        count = size if left >= size else left - left % ROWS_STEP or left
        rows = slice(start, start + count)
        logits_MV = model.logits(features_NH[rows])
        if logits_MV.dtype in (torch.float16, torch.bfloat16):
            yield rows, F.log_softmax(logits_MV, dim=-1, dtype=torch.float32)
        else:  # in their own memory, which is at hand: reading and writing it is what takes time
            yield rows, torch.log_softmax(logits_MV, -1, out=logits_MV)
        start += count


@contextmanager
def evaluating(model: LSTMLanguageModel) -> Iterator[None]:
    """No dropout, no graph, no TF32 inside; afterwards the model is in the mode it was in.

    A model that is in evaluation mode already is not touched, so that threads can share it.
    """
    settle_after_fork()
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode(), full_float32(model.embedding.device):
            yield
    finally:
        if was_training:
            model.train()


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
