"""Measures of predicted distributions: a token's rank, the entropy, the probability of a new word.

They are computed for many texts at once, as in `sglm.scoring.batch`, but with the whole softmax at
every step.

Shapes: T time, B lanes, V vocabulary, N tokens of all texts end to end, S texts, M some rows.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglm.scoring.batch import BATCH_TOKENS, lanes_at_once, repeat_lane
from sglm.scoring.predictor import Predictor, State
from sglm.scoring.stream import CHUNK_STEPS, Ids

Floats = npt.NDArray[np.float64]


class DistributionMeasures(NamedTuple):
    """Measures of the distribution after each token read, in arrays `(T, B)` or `(N,)`."""

    logprob: Floats
    """The log-probability of the token that came next, in nats."""
    rank: Ids
    """The rank of that token: 1 plus the number of likelier tokens."""
    entropy: Floats
    """The entropy of the distribution, in nats."""
    boundary: Floats
    """−log of the probability that the next token begins a word or ends the text, in nats."""


def measure_distributions(
    predictor: Predictor[State],
    ids_TB: Ids,
    targets_TB: Ids,
    *,
    state: State,
    begins_V: Tensor,
) -> tuple[DistributionMeasures, State]:
    """Reads ids, continuing from a state, and measures the distribution after each.

    Args:
        predictor: The model.
        ids_TB: The ids to read.
        targets_TB: The token after each of them; any id if there is none.
        state: The state before the first of `ids_TB`.
        begins_V: Whether each token begins a word (`Tokenizer.begins_word`), bool.

    Returns:
        The measures, `(T, B)`, and the state after the last of `ids_TB`.
    """
    parts: list[Tensor] = []
    scratch_MV: Tensor | None = None
    for start in range(0, len(ids_TB), CHUNK_STEPS):
        chunk = slice(start, start + CHUNK_STEPS)
        targets_N = torch.from_numpy(targets_TB[chunk]).flatten().to(predictor.device)
        blocks, state = predictor.distributions(torch.from_numpy(ids_TB[chunk]), state)
        for rows, logprobs_MV in blocks:
            if scratch_MV is None or len(scratch_MV) < len(logprobs_MV):
                scratch_MV = torch.empty_like(logprobs_MV)
            parts.append(
                _measure_block(
                    logprobs_MV,
                    targets_N[rows],
                    begins_V=begins_V.to(logprobs_MV),
                    scratch_MV=scratch_MV[: len(logprobs_MV)],
                )
            )
    logprob, rank, entropy, boundary = torch.cat(parts, dim=1).cpu().numpy()
    if bool(begins_V.all()):
        boundary[:] = 0.0  # exactly, without rounding errors
    shape = ids_TB.shape
    return DistributionMeasures(
        logprob.reshape(shape),
        rank.reshape(shape).astype(np.int64),
        entropy.reshape(shape),
        boundary.reshape(shape),
    ), state


@torch.no_grad()
def _measure_block(
    logprobs_MV: Tensor, targets_M: Tensor, *, begins_V: Tensor, scratch_MV: Tensor
) -> Tensor:
    """Returns the fields of `DistributionMeasures` for one block, `(4, M)`, float64.

    Intermediate results as large as the block are written into `scratch_MV`: allocating new memory
    would take longer than the arithmetic.
    """
    logprob_M1 = logprobs_MV.gather(1, targets_M[:, None])
    torch.softmax(logprobs_MV, -1, out=scratch_MV)  # of log-probabilities: the probabilities
    with torch.autocast(logprobs_MV.device.type, enabled=False):  # in case the caller uses it
        begins_M = scratch_MV @ begins_V
        negative_entropy_M = torch.linalg.vecdot(scratch_MV, logprobs_MV)
    if not negative_entropy_M.isfinite().all():  # 0·log 0 is NaN here, and must be 0
        negative_entropy_M = -torch.special.entr(scratch_MV).sum(1)
    likelier_M = torch.gt(logprobs_MV, logprob_M1, out=scratch_MV).sum(1)
    return torch.stack(
        [
            logprob_M1[:, 0].double(),
            1 + likelier_M.double(),
            -negative_entropy_M.double(),
            -begins_M.double().log(),
        ]
    )


def measure_packed_texts(
    predictor: Predictor[State],
    ids_N: Ids,
    lengths_S: Ids,
    *,
    state: State | None,
    begins_V: Tensor,
) -> DistributionMeasures:
    """Reads texts that lie end to end in one array, each from the same state.

    Args:
        predictor, begins_V: As for `measure_distributions`.
        ids_N: The ids of all texts, each with the token that stands before it.
        lengths_S: The number of ids of each text.
        state: The state before the first id of each text, in one lane. None: the start state.

    Returns:
        The measures after each id, `(N,)`. The last id of a text has no target: its logprob and
        rank are meaningless.
    """
    before = predictor.start(1) if state is None else state
    starts_S = np.cumsum(lengths_S) - lengths_S
    fields = [np.zeros(len(ids_N), dtype=np.float64) for _ in DistributionMeasures._fields]
    order = np.argsort(-lengths_S, kind="stable")[: np.count_nonzero(lengths_S)]
    while len(order):
        steps = int(lengths_S[order[0]])
        lanes, order = np.split(order, [lanes_at_once(predictor, BATCH_TOKENS // steps)])
        places_TB = starts_S[lanes] + np.arange(steps)[:, None]
        # A lane that ends early reads on into the ids after its text; the results are dropped.
        read, _ = measure_distributions(
            predictor,
            ids_N.take(places_TB, mode="clip"),
            ids_N.take(places_TB + 1, mode="clip"),
            state=repeat_lane(predictor, before, len(lanes)),
            begins_V=begins_V,
        )
        real_TB = np.arange(steps)[:, None] < lengths_S[lanes]
        for field_N, field_TB in zip(fields, read, strict=True):
            field_N[places_TB[real_TB]] = field_TB[real_TB]
    logprob_N, rank_N, entropy_N, boundary_N = fields
    return DistributionMeasures(logprob_N, rank_N.astype(np.int64), entropy_N, boundary_N)
