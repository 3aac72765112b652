"""The likelihoods of many separate texts, which are read in batches, each from the start state.

A prefix that several sequences share is read once: the sequences form a tree of prefixes, and the
predictor reads each node once. From where they differ, each sequence is read in a lane of its own.
The result of a sequence does not depend on the others in its batch, up to rounding.

Shapes: N tokens of all sequences end to end, S sequences, B lanes, T time, U distinct prefixes,
V vocabulary, M and C some of the tokens.
Likelihoods are in nats, float64.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglm.scoring.predictor import IGNORED, Predictor, State
from sglm.scoring.stream import CHUNK_STEPS, Ids, Nats, StoppedReading, never, read_on

Tokens = npt.NDArray[np.integer[Any]] | Sequence[int]

# The number of tokens (steps times lanes) that are read in one pass.
BATCH_TOKENS = 2**13
# A separate call for one step costs about as much as this many more lanes in a larger call.
STEP_LANES = 32
# The shortest prefix of all sequences that is faster to read once than in every lane.
WORTHWHILE_PREFIX = 16
# Lanes that have ended are dropped after this many steps at the earliest, because calls for few
# steps are expensive. The number of steps is a multiple of this, and the number of lanes one of
# `STEP_LANES`, because oneDNN makes and keeps a kernel for every shape (about 2 ms and a quarter of
# a megabyte each). One or two steps are not rounded up: after their shared prefixes, short texts
# often have no more left.
FEWEST_STEPS = 4


def texts_nll(
    predictor: Predictor[Any],
    texts: Iterable[Tokens],
    bos_id: int,
    *,
    batch_tokens: int = BATCH_TOKENS,
    should_stop: Callable[[], bool] = never,
    shard: tuple[int, int] = (0, 1),
) -> float:
    """Computes the negative log-likelihood of many texts, each read from the start state.

    Texts are taken from the iterable as they are needed: memory is bounded by the longest one.

    Args:
        predictor: The model.
        texts: The ids of each text.
        bos_id: The id that is read before each text; its first token is predicted from it.
        batch_tokens: The approximate number of tokens that are read in one pass.
        should_stop: Is called before each group of texts; a group takes about sixteen passes.
        shard: `(i, n)`: only groups i, i + n, i + 2n, … (counted from 0) are read, so that n
            processes can share the work; their results add up to that of all texts.

    Returns:
        The float64 sum over all tokens of the texts that were read, in nats.

    Raises:
        StoppedReading: `should_stop` returned true.
    """
    nll_nats = 0.0
    for number, group in enumerate(_groups(texts, bos_id, 16 * batch_tokens)):
        if should_stop():
            raise StoppedReading
        if number % shard[1] == shard[0]:
            nll_nats += float(packed_nlls(predictor, *group, batch_tokens=batch_tokens).sum())
    return nll_nats


def _groups(texts: Iterable[Tokens], bos_id: int, tokens: int) -> Iterator[tuple[Ids, Ids]]:
    """Yields groups of texts, `(ids_N, lengths_S)`, of about `tokens` tokens each. A group is large
    enough for several passes, so that little is padded after sorting by length."""
    waiting: list[Tokens] = []
    lengths: list[int] = []
    size = 0
    for text in texts:
        waiting += [[bos_id], text]
        lengths.append(1 + len(text))
        size += len(text)
        if size >= tokens:
            yield _concatenated(waiting), np.array(lengths, dtype=np.int64)
            waiting, lengths, size = [], [], 0
    if waiting:
        yield _concatenated(waiting), np.array(lengths, dtype=np.int64)


def sequence_nlls(
    predictor: Predictor[Any], sequences: Sequence[Tokens], *, batch_tokens: int = BATCH_TOKENS
) -> list[Nats]:
    """Reads each sequence from the start state and scores all of its tokens except the first.

    Args:
        predictor: The model.
        sequences: The ids of each sequence; the caller chooses the first one (`<eos>`, say).
        batch_tokens: The approximate number of tokens that are read in one pass.

    Returns:
        The nats of each scored token, one array for each sequence, in the same order; an empty
        sequence has an empty array. Equal to reading one by one, up to rounding.
    """
    lengths_S = np.array([len(ids) for ids in sequences], dtype=np.int64)
    ids_N = _concatenated(sequences)
    nll_N = packed_nlls(predictor, ids_N, lengths_S, batch_tokens=batch_tokens)
    ends = np.cumsum(lengths_S).tolist()
    return [nll_N[end - len(ids) :][1 : len(ids)] for ids, end in zip(sequences, ends, strict=True)]


def _concatenated(parts: Sequence[Tokens]) -> Ids:
    arrays = [np.asarray(ids, dtype=np.int64) for ids in parts]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def packed_nlls(
    predictor: Predictor[State],
    ids_N: Ids,
    lengths_S: Ids,
    *,
    state: State | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[float], object] = lambda share: None,
) -> Nats:
    """Does what `sequence_nlls` does, for sequences that lie end to end in one array.

    Args:
        predictor, batch_tokens: See `sequence_nlls`.
        ids_N: The ids of all sequences, end to end.
        lengths_S: The number of ids of each sequence.
        state: The state before the first id of each sequence, in one lane. None: the start state.
        progress: Is called after each pass with the share of the ids that have been read.

    Returns:
        The nats of each id given those before it in its sequence, `(N,)`; 0 for each first id.
    """
    nll_N = np.zeros(len(ids_N))
    before = predictor.start(1) if state is None else state
    if len(lengths_S) == 1 and len(ids_N) > 0:  # one sequence needs no batch
        nll_N[1:], _ = read_on(predictor, ids_N, before)
        return nll_N
    starts_S = np.cumsum(lengths_S) - lengths_S
    shared = _shared_by_all(ids_N, starts_S, lengths_S)
    if shared >= WORTHWHILE_PREFIX:
        places_T = starts_S[0] + np.arange(shared)
        prefix_nll_T, before = read_on(predictor, ids_N[places_T], before)
        nll_N[starts_S[:, None] + np.arange(1, shared)] = prefix_nll_T
        # Each sequence's own lane begins with the last id of the prefix.
        starts_S, lengths_S = starts_S + shared - 1, lengths_S - shared + 1
    # Longest first: at every step, the lanes that have not ended are the first ones of the batch.
    order = np.argsort(-lengths_S, kind="stable")[: np.count_nonzero(lengths_S > 1)]
    while len(order):
        steps = min(_rounded_up(int(lengths_S[order[0]]) - 1, FEWEST_STEPS), CHUNK_STEPS)
        lanes, order = np.split(order, [lanes_at_once(predictor, batch_tokens // steps)])
        _read_batch(
            predictor,
            ids_N,
            nll_N,
            starts_B=starts_S[lanes],
            lengths_B=lengths_S[lanes],
            before=before,
        )
        progress(1 - int(lengths_S[order].sum()) / len(ids_N))
    return nll_N


def _shared_by_all(ids_N: Ids, starts_S: Ids, lengths_S: Ids) -> int:
    """Returns the length of the prefix of all sequences; 0 if it is shorter than
    `WORTHWHILE_PREFIX`."""
    least = int(lengths_S.min()) if len(lengths_S) > 1 else 0
    if least < WORTHWHILE_PREFIX:
        return 0
    first_T = ids_N[starts_S[0] : starts_S[0] + least]
    for start in starts_S[1:].tolist():
        differ_T = np.flatnonzero(ids_N[start : start + least] != first_T)
        if len(differ_T):
            least = int(differ_T[0])
            if least < WORTHWHILE_PREFIX:
                return 0
            first_T = first_T[:least]
    return least


def lanes_at_once(predictor: Predictor[Any], lanes: int) -> int:
    """Limits a number of lanes to the predictor's `max_lanes`, if it has that; at least one."""
    return max(1, min(lanes, getattr(predictor, "max_lanes", lanes)))


def repeat_lane(predictor: Predictor[State], state: State, lanes: int) -> State:
    """Repeats the state of one lane for the given number of lanes."""
    return predictor.select(state, torch.zeros(lanes, dtype=torch.int64, device="cpu"))


def _read_batch(
    predictor: Predictor[State],
    ids_N: Ids,
    nll_N: Nats,
    *,
    starts_B: Ids,
    lengths_B: Ids,
    before: State,
) -> None:
    """Reads one batch of sequences, sorted by length, longest first, and writes into `nll_N`."""
    last = int(lengths_B[0]) - 1
    # The number of lanes that still have a token to predict at each step: always the first ones.
    lanes_T = np.searchsorted(-lengths_B, -np.arange(1, last + 1))
    step, state, lanes = _read_shared(
        predictor, ids_N, nll_N, starts_B=starts_B, lanes_T=lanes_T, before=before
    )
    while step < last:
        running = int(lanes_T[step])
        kept = running if running <= STEP_LANES else _rounded_up(running, STEP_LANES)
        if kept < lanes:
            lanes = kept
            state = predictor.select(state, torch.arange(lanes, device="cpu"))
        # Reads until a quarter of the lanes has ended, so that few steps of ended lanes are wasted.
        quarter = int(lengths_B[3 * running // 4]) - 1
        steps = quarter - step if quarter - step <= 2 else _rounded_up(quarter - step, FEWEST_STEPS)
        end = step + min(steps, CHUNK_STEPS)
        places_TB = starts_B[:lanes] + np.arange(step, end)[:, None]
        # A lane that ends early reads on into the ids after its sequence; the results are dropped.
        inputs_TB = ids_N.take(places_TB, mode="clip")
        real_TB = np.arange(step, end)[:, None] < lengths_B[:lanes] - 1
        targets_TB = np.where(real_TB, ids_N.take(places_TB + 1, mode="clip"), IGNORED)
        logprobs_TB, state = predictor.read(
            torch.from_numpy(inputs_TB), torch.from_numpy(targets_TB), state
        )
        assert logprobs_TB is not None  # there are targets
        nll_N[places_TB[real_TB] + 1] = -logprobs_TB.cpu().numpy()[real_TB]
        step = end


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _read_shared(
    predictor: Predictor[State],
    ids_N: Ids,
    nll_N: Nats,
    *,
    starts_B: Ids,
    lanes_T: Ids,
    before: State,
) -> tuple[int, State, int]:
    """Reads step by step, and each distinct prefix once, as long as enough lanes share prefixes.

    Returns:
        The number of steps read, the state of the lanes that have not ended, and their number.
    """
    lanes, vocab_size = len(starts_B), predictor.vocab_size
    if lanes < STEP_LANES:  # too few lanes to save anything
        return 0, repeat_lane(predictor, before, lanes), lanes
    state = before
    prefix_B = np.zeros(lanes, dtype=np.int64)
    for step, lanes in enumerate(lanes_T.tolist()):
        places_B = starts_B[:lanes] + step
        longer_B = prefix_B[:lanes] * vocab_size + ids_N[places_B]
        distinct_U, longer_B = np.unique(longer_B, return_inverse=True)
        if lanes - len(distinct_U) < STEP_LANES:
            return step, predictor.select(state, torch.from_numpy(prefix_B[:lanes])), lanes
        padded_U = np.resize(distinct_U, _rounded_up(len(distinct_U), STEP_LANES))
        parents_U, inputs_U = np.divmod(padded_U, vocab_size)
        state = predictor.select(state, torch.from_numpy(parents_U))
        blocks, state = predictor.distributions(torch.from_numpy(inputs_U)[None], state)
        prefix_B = longer_B
        for rows, logprobs_MV in blocks:
            lanes_C = np.flatnonzero((rows.start <= prefix_B) & (prefix_B < rows.stop))
            targets_C = torch.from_numpy(ids_N[places_B[lanes_C] + 1]).to(predictor.device)
            rows_C = torch.from_numpy(prefix_B[lanes_C] - rows.start).to(predictor.device)
            logprobs_C = logprobs_MV[rows_C, targets_C].double()
            nll_N[places_B[lanes_C] + 1] = -logprobs_C.cpu().numpy()
    return len(lanes_T), state, lanes
