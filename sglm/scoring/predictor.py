"""The interface of models that predict text, and its implementation by an LSTM.

`sglm.scoring` uses a model only through `Predictor`, so every implementation of that interface can
score, evaluate, extend and generate texts.

Shapes: T time, B lanes, V vocabulary, H features, N = T·B tokens in time-major order, M some of
them. Log-probabilities are natural (nats).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.model.identity import identity_of_network
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.linear import ROWS_STEP, linear, repeated_linear
from sglm.model.softmax_loss import IGNORED as IGNORED
from sglm.model.softmax_loss import Stage
from sglm.model.state import LSTMState
from sglm.runtime.device import full_float32
from sglm.runtime.process import limit_threads_after_fork

State = TypeVar("State")
# Blocks of distributions: a slice of the requested rows, and their log-probabilities `(M, V)`.
Blocks = Iterator[tuple[slice, Tensor]]

# The most rows of logits in memory at a time, and the most entries that they may have (16 MB). With
# fewer rows the products are slower; with more they are no faster.
LOGIT_ROWS = 512
LOGIT_ENTRIES = 2**22
# Up to this many rows, laying out the softmax matrix for repeated products takes the time it saves.
FEW_ROWS = 256
_BITS_PER_NAT = math.log2(math.e)  # bits per nat


class Predictor(Protocol[State]):
    """A model that reads token ids in parallel lanes and predicts log-probabilities of the next.

    **States** belong to the predictor and are opaque to its callers. A state is never changed: each
    method returns a new one, and the one passed in stays valid, because a text may be continued in
    several ways. Lanes do not influence each other beyond rounding.

    **Modes** belong to the predictor, too. It decides whether gradients are recorded, whether torch
    is in inference mode, whether dropout is off and which precision products have; callers set
    nothing. It sets and restores these modes within each call, and within each block of
    `distributions`: while a caller holds a block, the caller's own modes are in force. The tensors
    returned are constants: they may be read, but not changed in place.

    **Devices**: ids, targets and lanes may be on any device (callers leave them in the host's
    memory) and are moved; log-probabilities are returned on `device`.

    **Calls**: text is split into several calls only to bound memory. Two calls, the second from the
    state that the first returned, have the same results as one call for both.

    How predictors other than a single network fit this interface:

    - An ensemble: its state is a tuple of its members' states. A mixture's log-probability of a
      target is the logarithm of the mean of the members' probabilities of it, so its `read` needs
      only its members' `read`; `distributions` mixes blocks of equal rows.
    - An ONNX session: its state consists of the session's arrays; ids are already where it needs
      them, in the host's memory. With `None` for targets, a run fetches only the state.
    - A model that adapts while it reads (a cache, dynamic evaluation): what it has learned is part
      of the state, so `start` returns the unadapted model, and every text is scored from there.
      Within one call it predicts each token before it learns from it. It turns on the gradients
      that it needs. It also learns from the ids if `targets_TB` is None. If its states are large,
      an attribute `max_lanes` is the largest number of lanes to read side by side.

    An attribute `identity`, a str, distinguishes predictors whose states must not be confused; if
    it is missing, the name of the class does.
    """

    @property
    def vocab_size(self) -> int:
        """The number of tokens, V: ids, and columns of distributions, run from 0 to V − 1."""

    @property
    def device(self) -> torch.device:
        """The device on which log-probabilities are returned."""

    def start(self, lanes: int) -> State:
        """Returns the state before any text, for the given number of lanes."""

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: State
    ) -> tuple[Tensor | None, State]:
        """Reads ids, continuing from a state, and scores targets.

        Args:
            ids_TB: The ids to read, int64; T and B are at least 1, and B is `state`'s number of
                lanes.
            targets_TB: The token after each of `ids_TB`, int64. `IGNORED` (−100): nothing is
                predicted there, and no row of the softmax is computed. None: nothing is predicted
                at all; the state advances without a softmax.
            state: The state before the first of `ids_TB`.

        Returns:
            `(logprobs_TB, state)`: the log-probability of each target, float64, 0 for `IGNORED`,
            None without targets; and the state after the last of `ids_TB`.
        """

    def distributions(
        self, ids_TB: Tensor, state: State, *, last_steps: int | None = None
    ) -> tuple[Blocks, State]:
        """Reads ids, continuing from a state, and predicts the distribution of each next token.

        Args:
            ids_TB, state: As for `read`.
            last_steps: The number of steps at the end, 1 to T, after which to predict. None: all
                steps.

        Returns:
            `(blocks, state)`. Together the blocks are the N = T·B (or `last_steps`·B) rows in
            time-major order. Each block is computed when the iterator reaches it: a slice of a
            bounded number of rows, and their log-probabilities `(M, V)`, at least float32. A block
            is valid only until the next one.
        """

    def select(self, state: State, lanes: Tensor) -> State:
        """Returns the state of the lanes with the indices `lanes` (int64), in that order; an index
        may occur several times."""


def identity_of(predictor: object) -> str:
    """Returns the string that identifies the predictor to which a state belongs."""
    return str(getattr(predictor, "identity", type(predictor).__qualname__))


class NetworkPredictor:
    """An LSTM as a `Predictor[LSTMState]`, without dropout, gradients or TF32.

    The network may be in the middle of its training: it is in evaluation mode during each call, and
    then in its previous mode again. If it is in evaluation mode already, it is not modified, so
    threads can share it.
    """

    def __init__(
        self, model: LSTMLanguageModel, *, compute_dtype: torch.dtype | None = None
    ) -> None:
        """Wraps a network; each call uses the weights that it has at that time.

        Args:
            model: The network, in any mode.
            compute_dtype: The type of the matrix products while it reads, independent of the type
                in which the network trains. None: the type of the parameters.
        """
        self.model = model
        self.compute_dtype = compute_dtype

    @cached_property
    def identity(self) -> str:
        return identity_of_network(self.model)

    @property
    def vocab_size(self) -> int:
        return self.model.shape.vocab_size

    @property
    def device(self) -> torch.device:
        return self.model.embedding.device

    def start(self, lanes: int) -> LSTMState:
        limit_threads_after_fork()
        return self.model.start_state(lanes)  # zeros: nothing is computed

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: LSTMState
    ) -> tuple[Tensor | None, LSTMState]:
        with evaluating(self.model, self.compute_dtype):
            features_TBH, state = self.model.features(ids_TB.to(self.device), state)
            if targets_TB is None:
                return None, state
            features_NH, targets_N = features_TBH.flatten(0, 1), targets_TB.flatten()
            if int(targets_N.min()) != IGNORED:  # every target is scored
                logprobs_N = target_logprobs(self.model, features_NH, targets_N.to(self.device))
            else:
                rows_M = (targets_N != IGNORED).nonzero()[:, 0]
                targets_M = targets_N.index_select(0, rows_M).to(self.device)
                rows_M = rows_M.to(self.device)
                features_MH = features_NH.index_select(0, rows_M)
                logprobs_M = target_logprobs(self.model, features_MH, targets_M)
                logprobs_N = logprobs_M.new_zeros(len(targets_N))
                logprobs_N.index_copy_(0, rows_M, logprobs_M)
            return logprobs_N.view_as(targets_TB), state

    def distributions(
        self, ids_TB: Tensor, state: LSTMState, *, last_steps: int | None = None
    ) -> tuple[Blocks, LSTMState]:
        with evaluating(self.model, self.compute_dtype):
            features_TBH, state = self.model.features(ids_TB.to(self.device), state)
            if last_steps is not None:
                features_TBH = features_TBH[-last_steps:]
            return self._blocks(features_TBH.flatten(0, 1)), state

    def _blocks(self, features_NH: Tensor) -> Blocks:
        for rows in block_rows(len(features_NH), self.vocab_size):
            # The yield is outside: otherwise the caller would run in these modes as well.
            with evaluating(self.model, self.compute_dtype):
                logprobs_MV = block_logprobs(self.model, features_NH[rows])
            yield rows, logprobs_MV

    def select(self, state: LSTMState, lanes: Tensor) -> LSTMState:
        with evaluating(self.model, self.compute_dtype):
            return state.lanes(lanes.to(self.device))


@contextmanager
def evaluating(
    model: LSTMLanguageModel, compute_dtype: torch.dtype | None = None
) -> Iterator[None]:
    """Within the context there is no dropout, graph, TF32 or autocast, and products are in
    `compute_dtype`. Afterwards the model is in its previous mode.

    A model that is in these modes already is not modified, so threads can share it.
    """
    limit_threads_after_fork()
    was_training, training_dtype = model.training, model.compute_dtype
    if was_training:
        model.eval()
    if training_dtype is not compute_dtype:
        model.compute_dtype = compute_dtype
    device = model.embedding.device
    own_types: AbstractContextManager[object] = nullcontext()
    if torch.is_autocast_enabled(device.type):
        own_types = torch.autocast(device.type, enabled=False)
    try:
        with torch.inference_mode(), full_float32(device), own_types:
            yield
    finally:
        if was_training:
            model.train()
        if training_dtype is not compute_dtype:
            model.compute_dtype = training_dtype


def target_logprobs(model: LSTMLanguageModel, features_NH: Tensor, targets_N: Tensor) -> Tensor:
    """Returns the log-probabilities of targets, float64 `(N,)`, with few rows of logits in memory.

    On a CPU, the softmax sums powers of two, of logits in bits, because torch has vector code for
    powers of two on every CPU, but not for powers of e. The maximum is not subtracted first, which
    saves two passes over the logits; a block whose sums leave float32's range is computed again.
    """
    logprobs_N = targets_N.new_zeros(len(targets_N), dtype=torch.float64)
    for stage in model.stages(targets_N):
        logprobs_M = _stage_logprobs(stage, stage.select(features_NH))
        logprobs_N = stage.scatter_add(logprobs_N, logprobs_M)
    return logprobs_N


def _stage_logprobs(stage: Stage, features_NH: Tensor) -> Tensor:
    """Returns the log-probabilities of a stage's targets, given the features of its tokens."""
    targets_N = stage.targets_M
    count, vocab_size = len(features_NH), len(stage.weight_VH)
    blocks = list(block_rows(count, vocab_size))
    if not blocks:
        return targets_N.new_empty(0, dtype=torch.float64)
    if features_NH.is_cuda or features_NH.dtype == torch.float64:
        return torch.cat([_by_log_softmax(stage, features_NH[r], targets_N[r]) for r in blocks])
    bits_NH = (features_NH * _BITS_PER_NAT).to(features_NH.dtype)
    bias_V = (stage.bias_V * _BITS_PER_NAT).to(features_NH.dtype)
    weight_VH = stage.weight_VH.to(features_NH.dtype)
    product: Callable[[Tensor], Tensor]
    product = partial(linear, weight_OI=weight_VH, bias_O=bias_V)
    if count > FEW_ROWS and (size := most_rows(vocab_size)) >= ROWS_STEP:
        product = repeated_linear(weight_VH, bias_V, size)
        blocks = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    parts = []
    for rows in blocks:
        logits_MV = product(bits_NH[rows])
        logits_M = logits_MV.gather(1, targets_N[rows, None])[:, 0].double()
        sums_M = logits_MV.float().exp2_().sum(1)
        if _in_range(sums_M):
            parts.append((logits_M - sums_M.double().log2()) / _BITS_PER_NAT)
        else:
            parts.append(_by_log_softmax(stage, features_NH[rows], targets_N[rows]))
    return torch.cat(parts)


def _in_range(sums_M: Tensor) -> bool:
    """Tells whether no sum has overflowed, and none is so small that underflows matter.

    Even for 2²⁴ tokens, powers below 2⁻¹²⁶ (0 or denormal) add less than 2⁻³⁸ of the sum.
    """
    return bool(((sums_M > 2.0**-64) & (sums_M < math.inf)).all())


def _by_log_softmax(stage: Stage, features_MH: Tensor, targets_M: Tensor) -> Tensor:
    dtype = features_MH.dtype
    logits_MV = linear(features_MH, stage.weight_VH.to(dtype), stage.bias_V.to(dtype))
    return _log_softmax(logits_MV).gather(1, targets_M[:, None])[:, 0].double()


def most_rows(vocab_size: int) -> int:
    """Returns the number of rows of logits in memory at a time; above `ROWS_STEP`, a multiple of
    it."""
    size = max(1, min(LOGIT_ROWS, LOGIT_ENTRIES // vocab_size))
    return size - size % ROWS_STEP if size > ROWS_STEP else size


def block_rows(total: int, vocab_size: int) -> Iterator[slice]:
    """Yields slices of `total` rows, in order; each is small enough for its logits in memory."""
    size = most_rows(vocab_size)
    start = 0
    while start < total:
        left = total - start
        # The last rows are cut in two: a multiple of `ROWS_STEP`, which is faster, and the rest.
        count = size if left >= size else left - left % ROWS_STEP or left
        yield slice(start, start + count)
        start += count


def block_logprobs(
    model: LSTMLanguageModel, features_MH: Tensor, *, bias_V: Tensor | None = None
) -> Tensor:
    """Returns the log-probabilities of all tokens after each row, `(M, V)`, without gradients.

    They are at least float32: sums of exponentials over thousands of words need it (logits may be
    16-bit). `bias_V` is added to the logits.
    """
    logits_MV = model.logits(features_MH)
    if bias_V is not None:
        logits_MV += bias_V
    elif model.adaptive is not None:
        return logits_MV  # an adaptive softmax returns log-probabilities
    return _log_softmax(logits_MV)


def _log_softmax(logits_MV: Tensor) -> Tensor:
    if logits_MV.dtype in (torch.float16, torch.bfloat16):
        return F.log_softmax(logits_MV, dim=-1, dtype=torch.float32)
    # In place, in memory that is in the cache: reading and writing it takes most of the time.
    return torch.log_softmax(logits_MV, -1, out=logits_MV)


def reading_floats(shape: ModelShape, *, steps: int) -> float:
    """Estimates the memory, besides its weights, that a network needs to score steps of one lane.

    The unit is one float32 number (`sglm.runtime.memory_basis`).
    """
    rows = max(1, min(LOGIT_ROWS, steps, LOGIT_ENTRIES // shape.vocab_size))
    return 2 * rows * shape.vocab_size + steps * 8 * max(shape.widths) + max(shape.layer_weights)
