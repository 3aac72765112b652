"""Token ids in, nats out: the negative log-likelihood of streams and of separate sequences.

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
from torch import Tensor

from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState

Ids = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.integer[Any]] | Sequence[int]
Stream = npt.NDArray[np.integer[Any]] | Iterable[Sequence[int]]

# Steps between two looks at `should_stop`; what is held of the features at a time.
CHUNK_STEPS = 256
# Steps whose logits are held at a time, and the most entries these may have (64 MB). More would
# not be faster: the logits no longer fit into a CPU's cache.
LOGIT_ROWS = 128
LOGIT_ENTRIES = 2**24
# Steps times lanes of separate sequences in one pass.
BATCH_TOKENS = 2**13


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


def texts_nll(
    model: LSTMLanguageModel,
    texts: Iterable[Tokens],
    eos_id: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
) -> float:
    """The negative log-likelihood of many texts, each from the zero state after `<eos>`.

    Texts are taken from the iterable as they are needed: memory is bounded by the longest one.

    Returns:
        The float64 sum over all tokens of all texts in nats.
    """
    nll_nats = 0.0
    waiting: list[Tokens] = []
    size = 0
    for text in texts:
        waiting.append(text)
        size += len(text)
        # Many batches at once, so that sorting by length leaves little padding.
        if size >= 16 * batch_tokens:
            nll_nats += _sum_of_texts(model, waiting, eos_id, batch_tokens)
            waiting, size = [], 0
    return nll_nats + _sum_of_texts(model, waiting, eos_id, batch_tokens)


def _sum_of_texts(
    model: LSTMLanguageModel, texts: Sequence[Tokens], eos_id: int, batch_tokens: int
) -> float:
    sequences = [np.concatenate(([eos_id], text)).astype(np.int64) for text in texts]
    nlls = sequence_nlls(model, sequences, batch_tokens=batch_tokens)
    return float(sum(nll_N.sum() for nll_N in nlls))


def sequence_nlls(
    model: LSTMLanguageModel, sequences: Sequence[Ids], *, batch_tokens: int = BATCH_TOKENS
) -> list[npt.NDArray[np.float64]]:
    """Reads each sequence from the zero state; scores all of its tokens but the first.

    Args:
        model: see `evaluate_stream`.
        sequences: ids; what the first token is (`<eos>`, say) is the caller's choice.
        batch_tokens: about how many tokens are read in one pass.

    Returns:
        For each sequence, in the order given, nats per token: one number fewer than tokens (none
        for an empty sequence). The same as one by one, up to rounding.
    """
    nlls = [np.empty(max(len(ids) - 1, 0)) for ids in sequences]
    # Longest first: at every step the lanes still running are the first ones of the batch.
    order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
    while order and len(sequences[order[-1]]) < 2:
        order.pop()
    with evaluating(model):
        while order:
            steps = min(len(sequences[order[0]]) - 1, CHUNK_STEPS)
            lanes = max(1, batch_tokens // steps)
            _read_lanes(model, [(sequences[i], nlls[i]) for i in order[:lanes]])
            order = order[lanes:]
    return nlls


def _read_lanes(
    model: LSTMLanguageModel, lanes: Sequence[tuple[Ids, npt.NDArray[np.float64]]]
) -> None:
    """Fills in the nats per token of sequences that are sorted by length, longest first."""
    device = model.embedding.device
    state = model.start_state(len(lanes))
    for start in range(0, len(lanes[0][0]) - 1, CHUNK_STEPS):
        # Each lane's part of this chunk: its inputs and, one further, its targets.
        parts = [ids[start : start + CHUNK_STEPS + 1] for ids, _ in lanes]
        parts = [part for part in parts if len(part) > 1]
        steps, active = len(parts[0]) - 1, len(parts)
        # Padding comes last in its lane, so no real step ever sees it; 0 is as good as any id.
        window_BT = np.zeros((active, steps + 1), dtype=np.int64)
        for row, part in zip(window_BT, parts, strict=True):
            row[: len(part)] = part
        real_BT = np.arange(steps) < np.array([len(part) - 1 for part in parts])[:, None]
        window_TB = torch.from_numpy(window_BT).to(device).t()
        real_TB = torch.from_numpy(real_BT).to(device).t()
        state = state.lanes(torch.arange(active, device=device))
        features_TBH, state = model.features(window_TB[:-1].contiguous(), state)
        nll_N = token_nll(model, features_TBH[real_TB], window_TB[1:][real_TB])
        nll_TB = torch.zeros(steps, active, dtype=torch.float64, device=device)
        nll_TB[real_TB] = nll_N
        for (_, nll), row, part in zip(lanes, nll_TB.t().cpu().numpy(), parts, strict=False):
            nll[start : start + len(part) - 1] = row[: len(part) - 1]


def token_nll(model: LSTMLanguageModel, features_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Nats of each target, float64 `(N,)`; logits exist for a bounded number of rows at a time."""
    rows = max(1, min(LOGIT_ROWS, LOGIT_ENTRIES // model.shape.vocab_size))
    parts = [
        model.nll(features_MH[:, None], targets_M[:, None], reduction="none")[:, 0].double()
        for features_MH, targets_M in zip(
            torch.split(features_NH, rows), torch.split(targets_N, rows), strict=True
        )
    ]
    return torch.cat(parts)


@contextmanager
def evaluating(model: LSTMLanguageModel) -> Iterator[None]:
    """No dropout and no graph inside; afterwards the model is in the mode it was in.

    A model that is in evaluation mode already is not touched, so that threads can share it.
    """
    was_training = model.training
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
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
