"""Many separate sequences at once: each from the zero state, whatever company it is read in.

What sequences begin with in common is read once: they are the branches of a tree of prefixes, and
the network runs once for each of its nodes. Where they have parted, each goes on in a lane of its
own. No result depends on the company beyond rounding.

Shapes: N tokens of all sequences end to end, S sequences, B lanes, T time, U distinct prefixes,
V vocabulary, H features, M and C some of the tokens.
Likelihoods are in nats, float64.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.scoring.stream import CHUNK_STEPS, Ids, evaluating, predictions, read_on, token_nll

Tokens = npt.NDArray[np.integer[Any]] | Sequence[int]
Nats = npt.NDArray[np.float64]

# Steps times lanes of separate sequences in one pass.
BATCH_TOKENS = 2**13
# A step on its own, apart from those around it, costs about as much as so many lanes in company.
STEP_LANES = 32
# Lanes that have ended are dropped after so many steps at the earliest, for the same reason. Steps
# come in multiples of this and lanes in multiples of `STEP_LANES`: oneDNN makes a kernel for every
# shape and keeps it, about 2 ms and a quarter of a megabyte each. One or two steps are left as they
# are: short texts, most of which share their beginnings, often have no more to go.
FEWEST_STEPS = 4


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
    lengths: list[int] = []
    size = 0

    def read_waiting() -> float:
        lengths_S = np.array(lengths, dtype=np.int64)
        ids_N = _end_to_end(waiting)
        return float(packed_nlls(model, ids_N, lengths_S, batch_tokens=batch_tokens).sum())

    for text in texts:
        waiting += [[eos_id], text]
        lengths.append(1 + len(text))
        size += len(text)
        # Many batches at once, so that sorting by length leaves little padding.
        if size >= 16 * batch_tokens:
            nll_nats += read_waiting()
            waiting.clear()
            lengths.clear()
            size = 0
    return nll_nats + read_waiting()


def sequence_nlls(
    model: LSTMLanguageModel, sequences: Sequence[Tokens], *, batch_tokens: int = BATCH_TOKENS
) -> list[Nats]:
    """Reads each sequence from the zero state; scores all of its tokens but the first.

    Args:
        model: in any mode; it is evaluated without dropout and left in the mode it was in.
        sequences: ids; what the first token is (`<eos>`, say) is the caller's choice.
        batch_tokens: about how many tokens are read in one pass.

    Returns:
        For each sequence, in the order given, nats per token: one number fewer than tokens (none
        for an empty sequence). The same as one by one, up to rounding.
    """
    lengths_S = np.array([len(ids) for ids in sequences], dtype=np.int64)
    ids_N = _end_to_end(sequences)
    nll_N = packed_nlls(model, ids_N, lengths_S, batch_tokens=batch_tokens)
    ends = np.cumsum(lengths_S).tolist()
    return [nll_N[end - len(ids) :][1 : len(ids)] for ids, end in zip(sequences, ends, strict=True)]


def _end_to_end(parts: Sequence[Tokens]) -> Ids:
    arrays = [np.asarray(ids, dtype=np.int64) for ids in parts]
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)


def packed_nlls(
    model: LSTMLanguageModel, ids_N: Ids, lengths_S: Ids, *, batch_tokens: int = BATCH_TOKENS
) -> Nats:
    """`sequence_nlls` for sequences that lie end to end in one array.

    Args:
        model, batch_tokens: see there.
        ids_N: all ids, one sequence after the other.
        lengths_S: how many belong to each.

    Returns:
        `(N,)`: the nats of every id after those before it in its sequence; 0 for each first one.
    """
    nll_N = np.zeros(len(ids_N))
    if len(lengths_S) == 1 and len(ids_N) > 0:  # no company: the direct way
        nll_N[1:], _ = read_on(model, ids_N, model.start_state(1))
        return nll_N
    starts_S = np.cumsum(lengths_S) - lengths_S
    # Longest first: at every step the lanes still running are the first ones of the batch.
    order = np.argsort(-lengths_S, kind="stable")[: np.count_nonzero(lengths_S > 1)]
    with evaluating(model):
        while len(order):
            steps = min(_rounded_up(int(lengths_S[order[0]]) - 1, FEWEST_STEPS), CHUNK_STEPS)
            lanes, order = np.split(order, [max(1, batch_tokens // steps)])
            _read_batch(model, ids_N, starts_S[lanes], lengths_S[lanes], nll_N)
    return nll_N


def _read_batch(
    model: LSTMLanguageModel, ids_N: Ids, starts_B: Ids, lengths_B: Ids, nll_N: Nats
) -> None:
    """Fills in the nats of sequences that are sorted by length, longest first."""
    device = model.embedding.device
    last = int(lengths_B[0]) - 1
    # How many lanes, the first ones, have something to predict at each step.
    lanes_T = np.searchsorted(-lengths_B, -np.arange(1, last + 1))
    step, state = _read_shared(model, ids_N, starts_B, lanes_T, nll_N)
    while step < last:
        running = int(lanes_T[step])
        lanes = running
        if running > STEP_LANES:
            lanes = min(_rounded_up(running, STEP_LANES), state.batch)
        state = state.lanes(torch.arange(lanes, device=device))
        # Until a quarter of the lanes has ended: little is then computed for nothing.
        quarter = int(lengths_B[3 * running // 4]) - 1
        steps = quarter - step if quarter - step <= 2 else _rounded_up(quarter - step, FEWEST_STEPS)
        end = step + min(steps, CHUNK_STEPS)
        places_TB = starts_B[:lanes] + np.arange(step, end)[:, None]
        # A lane that ends early reads on in what lies behind it: no real step ever sees that.
        inputs_TB = torch.from_numpy(ids_N.take(places_TB, mode="clip")).to(device)
        features_TBH, state = model.features(inputs_TB, state)
        real_TB = np.arange(step, end)[:, None] < lengths_B[:lanes] - 1
        features_MH = features_TBH.flatten(0, 1)
        if not real_TB.all():
            features_MH = features_MH[torch.from_numpy(np.flatnonzero(real_TB)).to(device)]
        places_M = places_TB[real_TB] + 1
        targets_M = torch.from_numpy(ids_N[places_M]).to(device)
        nll_N[places_M] = token_nll(model, features_MH, targets_M).cpu().numpy()
        step = end


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _read_shared(
    model: LSTMLanguageModel, ids_N: Ids, starts_B: Ids, lanes_T: Ids, nll_N: Nats
) -> tuple[int, LSTMState]:
    """Reads step by step, each distinct prefix once, as long as enough lanes share theirs.

    Returns:
        How many steps that were, and the state of the lanes that go on.
    """
    device = model.embedding.device
    state = model.start_state(1)
    if len(starts_B) < STEP_LANES:  # too few to save anything
        return 0, state.lanes(torch.zeros(len(starts_B), dtype=torch.int64, device=device))
    prefix_B = np.zeros(len(starts_B), dtype=np.int64)
    for step, lanes in enumerate(lanes_T.tolist()):
        places_B = starts_B[:lanes] + step
        longer_B = prefix_B[:lanes] * model.shape.vocab_size + ids_N[places_B]
        distinct_U, longer_B = np.unique(longer_B, return_inverse=True)
        if lanes - len(distinct_U) < STEP_LANES:
            return step, state.lanes(torch.from_numpy(prefix_B[:lanes]).to(device))
        padded_U = np.resize(distinct_U, _rounded_up(len(distinct_U), STEP_LANES))
        parents_U, inputs_U = np.divmod(padded_U, model.shape.vocab_size)
        state = state.lanes(torch.from_numpy(parents_U).to(device))
        inputs_1U = torch.from_numpy(inputs_U).to(device)[None]
        features_1UH, state = model.features(inputs_1U, state)
        prefix_B = longer_B
        for rows, logprobs_MV in predictions(model, features_1UH[0]):
            lanes_C = np.flatnonzero((rows.start <= prefix_B) & (prefix_B < rows.stop))
            targets_C = ids_N[places_B[lanes_C] + 1]
            rows_C = torch.from_numpy(prefix_B[lanes_C] - rows.start).to(device)
            logprobs_C = logprobs_MV[rows_C, torch.from_numpy(targets_C).to(device)]
            nll_N[places_B[lanes_C] + 1] = -logprobs_C.double().cpu().numpy()
    return len(lanes_T), state
