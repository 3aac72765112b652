"""The softmax loss without all of its logits in memory: chunked linear cross-entropy.

The logits of a window are by far its largest tensor (T·B·V numbers, and as many again for their
log-softmax and for their gradient), yet each row of them is needed only once: its loss is summed,
its gradient goes into three matrix products. So only a few rows at a time are computed, used and
freed (compare Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models").

torch's own `F.linear_cross_entropy` (from 2.13 on) does the same, but is not used. If the products
are in half precision, so are its loss and its gradient in the weights, which should be summed in
float32. Older versions of torch lack it, so results would depend on the version. On a CPU it also
takes at least one and a half times as long.

Shapes: N = T·B tokens, M tokens of a stage, R rows of one chunk, V vocabulary, H features. Losses
are in nats.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.model.linear import ROWS_STEP, linear, matmul, onednn_pays

IGNORED = -100  # the target where nothing is predicted, as in torch's cross_entropy
# The number of logits of one chunk: on a CPU 32 MiB, on a GPU enough rows to keep it busy
# (unmeasured). Below FEWEST_ROWS, reading and writing the weights' gradient once per chunk would
# dominate.
CHUNK_ENTRIES = {"cpu": 2**23, "cuda": 2**25}
FEWEST_ROWS = 256
# Multiply-adds from which the chunked loss is faster on a CPU even with a single chunk. At 2**23
# its additional calls still cost more than it saves.
WORTHWHILE_PRODUCTS = 2**24
# The product for a gradient of this many numbers is bound by memory bandwidth: adding to it in
# place is as fast as oneDNN's product, which would need a second array of this size for its result.
ADDED_IN_PLACE = 2**24
# The number of values of a half type in the 16 bytes that a GPU's fastest products read at once;
# rows whose length is not a multiple go to slower ones. (The gain for this loss is not measured.)
ALIGNED = 8


class Stage(NamedTuple):
    """One of the softmaxes whose probabilities, multiplied, are those of the targets.

    A full softmax is a single stage, of all tokens.

    Attributes:
        tokens_M: Indices of the tokens whose targets it concerns; None: all tokens.
        weight_VH, bias_V: Rows and biases of its softmax, with V entries.
        targets_M: The entry of each token's target; `IGNORED`: nothing is predicted.
    """

    tokens_M: Tensor | None
    weight_VH: Tensor
    bias_V: Tensor
    targets_M: Tensor

    def select(self, values_NH: Tensor) -> Tensor:
        """Returns the values of its own tokens."""
        return values_NH if self.tokens_M is None else values_NH.index_select(0, self.tokens_M)

    def scatter_add(self, sums_N: Tensor, values_M: Tensor) -> Tensor:
        """Returns the sums of all tokens, with values of its own tokens added."""
        if self.tokens_M is None:
            return sums_N + values_M
        return sums_N.index_add(0, self.tokens_M, values_M)

    def padded(self) -> "Stage":
        """Returns it padded to a multiple of `ROWS_STEP` tokens; those added predict nothing."""
        if self.tokens_M is None:
            return self
        padding = -len(self.tokens_M) % ROWS_STEP
        return self._replace(
            tokens_M=F.pad(self.tokens_M, (0, padding)),
            targets_M=F.pad(self.targets_M, (0, padding), value=IGNORED),
        )


def stage_nll(features_NH: Tensor, stage: Stage, reduction: str) -> Tensor:
    """Returns −log of a stage's probabilities of its targets, in nats, float32 at least.

    Args:
        features_NH: Features of all tokens, in the type of the products.
        stage: The stage, which selects some of the tokens.
        reduction: `"sum"`: a scalar; `"none"`: one value for each of its tokens.
    """
    weight_VH, bias_V = stage.weight_VH, stage.bias_V
    if reduction == "sum" and torch.is_grad_enabled():
        stage = stage.padded()
        features_MH = stage.select(features_NH)
        rows = chunk_rows(len(weight_VH), features_NH.device.type)
        if len(features_MH) > rows or chunks_are_faster(features_MH, weight_VH):
            return chunked_nll(features_MH, weight_VH, bias_V, targets_N=stage.targets_M, rows=rows)
    dtype = features_NH.dtype
    logits_MV = linear(stage.select(features_NH), weight_VH.to(dtype), bias_V.to(dtype))
    # Sums of exponentials over thousands of words need float32 (the logits may be of a half type).
    if dtype in (torch.float16, torch.bfloat16):
        logits_MV = logits_MV.float()
    return F.cross_entropy(logits_MV, stage.targets_M, reduction=reduction)


def chunk_rows(vocab_size: int, device_type: str) -> int:
    """Returns R, the number of tokens whose logits are held at a time."""
    entries = CHUNK_ENTRIES["cpu" if device_type == "cpu" else "cuda"]
    return max(FEWEST_ROWS, entries // vocab_size)


def even_rows(tokens: int, most: int) -> int:
    """Returns the rows of every chunk except perhaps the last: at most `most`, and nearly equal.

    It is a multiple of `ROWS_STEP`, so that there are few different sizes, unless the last chunk
    would then have less than half as many rows.
    """
    chunks = max(1, -(-tokens // most))
    even = max(1, -(-tokens // chunks))
    stepped = even + -even % ROWS_STEP
    last = tokens - stepped * (chunks - 1)
    return stepped if stepped <= most and 2 * last >= stepped else min(even, most)


def chunks_are_faster(features_NH: Tensor, weight_VH: Tensor) -> bool:
    """Returns whether the chunked loss is faster even with a single chunk."""
    if features_NH.device.type != "cpu":
        return any(alignment_padding(features_NH, weight_VH))
    large = len(features_NH) * weight_VH.numel() >= WORTHWHILE_PRODUCTS
    return large and features_NH.dtype != torch.float64


def alignment_padding(features_NH: Tensor, weight_VH: Tensor) -> tuple[int, int]:
    """Returns how many added words and features would make the chunked loss's products faster."""
    if features_NH.device.type == "cpu" or features_NH.dtype.itemsize != 2:
        return 0, 0
    words, features = weight_VH.shape
    return -words % ALIGNED, -features % ALIGNED


def chunked_nll(
    features_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, *, targets_N: Tensor, rows: int
) -> Tensor:
    """Computes the targets' summed negative log-likelihood by softmax(features · weightᵀ + bias).

    It equals `F.cross_entropy(F.linear(…), …, reduction="sum")` with two exceptions: a token counts
    at most 87 nats, −log of the smallest normal float32 (its gradient is exact nevertheless), and
    an infinite logit makes the loss NaN. The gradients are computed in the forward pass, while a
    chunk's logits are in memory, and only scaled in the backward pass: besides them, only the
    logits of one chunk are held. The loss can be differentiated once.

    Args:
        features_NH: Features, in the type of the products.
        weight_VH, bias_V: Parameters, in any floating type; cast to that of the products.
        targets_N: Token ids, int64; positions with `IGNORED` are left out of the sum.
        rows: R, the largest number of tokens whose logits are held at a time.

    Returns:
        A scalar, float32 at least.
    """
    nll: Tensor = _ChunkedNLL.apply(  # type: ignore[no-untyped-call]
        features_NH, weight_VH, bias_V, targets_N, rows
    )
    return nll


class _ChunkedNLL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor,
        targets_N: Tensor,
        rows: int,
    ) -> Tensor:
        # Sums over thousands of words, and of gradients over chunks, need float32.
        sum_type = torch.promote_types(features_NH.dtype, torch.float32)
        weight_type = torch.promote_types(weight_VH.dtype, torch.float32)
        (words, features), dtype = weight_VH.shape, features_NH.dtype
        more_words, more_features = alignment_padding(features_NH, weight_VH)
        # Added features are zero; added words have probability zero.
        features_NH = F.pad(features_NH, (0, more_features)) if more_features else features_NH
        cast_VH = _cast(weight_VH, dtype, more_words=more_words, more_features=more_features)
        cast_V = F.pad(bias_V.to(dtype), (0, more_words), value=-torch.inf)
        nll = torch.zeros((), dtype=sum_type, device=features_NH.device)
        to_features_NH = torch.empty_like(features_NH)
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = _WeightGradient(features_NH, cast_VH=cast_VH, dtype=weight_type)
        rows = even_rows(len(features_NH), rows)
        to_bias_V = torch.zeros_like(cast_V, dtype=weight_type)
        logits_RV, p_RV = _buffers(features_NH, cast_VH, rows)
        chunks = zip(
            *(torch.split(each, rows) for each in (features_NH, targets_N, to_features_NH)),
            strict=True,
        )
        for features_RH, targets_R, to_features_RH in chunks:
            has_target_R1 = (targets_R != IGNORED).unsqueeze(1)
            index_R1 = targets_R.unsqueeze(1) * has_target_R1  # 0 where the target is ignored
            into = None if logits_RV is None else logits_RV[: len(targets_R)]
            logits = matmul(features_RH, cast_VH.t(), cast_V, out_RC=into)
            p = logits if p_RV is None else p_RV[: len(targets_R)]
            nll -= (_softmax(logits, index_R1, p) * has_target_R1).sum()
            # ∂nll/∂logits = p − [target].
            to_logits = p.scatter_add_(1, index_R1, torch.full_like(index_R1, -1, dtype=sum_type))
            # Ignored rows are zeroed in the narrow factors, which is cheaper than in V columns.
            to_bias_V.addmv_(to_logits.t().to(weight_type), has_target_R1[:, 0].to(weight_type))
            if p_RV is not None:
                to_logits = logits.copy_(to_logits)
            torch.mul(matmul(to_logits, cast_VH), has_target_R1, out=to_features_RH)
            counted_RH = features_RH * has_target_R1
            if to_weight is not None:
                to_weight.add(to_logits, counted_RH)
            del logits, p, to_logits  # not held while the next ones are computed
        if to_weight is None:
            to_weight_VH = torch.zeros_like(weight_VH, dtype=weight_type)
        else:
            to_weight_VH = to_weight.total()[:words, :features]
        ctx.save_for_backward(to_features_NH[:, :features], to_weight_VH, to_bias_V[:words])
        ctx.types = (weight_VH.dtype, bias_V.dtype)
        return nll

    @staticmethod
    def backward(ctx: Any, to_nll: Tensor) -> tuple[Tensor | None, ...]:
        # Not `once_differentiable`: with it, a second derivative would silently be zero where
        # `to_nll` is a constant. Gradients are recorded here only if a second one is wanted.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the chunked softmax loss can be differentiated only once; for second derivatives"
                " take the loss of fewer tokens at a time (sglm.model.softmax_loss.chunk_rows)"
            )
        # In place, so that no second copy is held. torch then refuses a second backward pass.
        to_features_NH, to_weight_VH, to_bias_V = ctx.saved_tensors
        weight_type, bias_type = ctx.types
        return (
            to_features_NH.mul_(to_nll),
            to_weight_VH.mul_(to_nll).to(weight_type),
            to_bias_V.mul_(to_nll).to(bias_type),
            None,
            None,
        )


def _cast(weight_VH: Tensor, dtype: torch.dtype, *, more_words: int, more_features: int) -> Tensor:
    """Returns the matrix in another type, with zeros for added words and features."""
    if not (more_words or more_features):
        return weight_VH.to(dtype)
    words, features = weight_VH.shape
    cast_VH = weight_VH.new_zeros(words + more_words, features + more_features, dtype=dtype)
    cast_VH[:words, :features] = weight_VH
    return cast_VH


def _buffers(
    features_NH: Tensor, cast_VH: Tensor, rows: int
) -> tuple[Tensor | None, Tensor | None]:
    """Returns memory for a chunk's logits, and for its probabilities in the type of their sums.

    It is allocated once if possible, because allocating and freeing such blocks for every chunk
    would fragment the heap. The first is None if oneDNN allocates the logits, the second if the
    probabilities have the logits' type and overwrite them.
    """
    words, sum_type = len(cast_VH), torch.promote_types(features_NH.dtype, torch.float32)
    logits_RV, p_RV = None, None
    if not onednn_pays(features_NH, cast_VH.t()):
        logits_RV = features_NH.new_empty(rows, words)
    if features_NH.dtype != sum_type:
        p_RV = features_NH.new_empty(rows, words, dtype=sum_type)
    return logits_RV, p_RV


class _WeightGradient:
    """The gradient of the softmax matrix: the sum of one product for each chunk.

    Args:
        features_NH: Features of all chunks.
        cast_VH: The matrix in the type of the products.
        dtype: Type of the sum.
    """

    def __init__(self, features_NH: Tensor, *, cast_VH: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        by_onednn = onednn_pays(features_NH, cast_VH.t())
        large = cast_VH.numel() >= ADDED_IN_PLACE
        self.in_place = cast_VH.dtype == dtype and (large or not by_onednn)
        # oneDNN first copies a left factor that is transposed. With many tokens it is cheaper to
        # copy the features than the logits' gradient (N·V numbers), although the sum (H·V numbers)
        # must then be transposed once at the end.
        wide = len(features_NH) > features_NH.shape[1]
        self.transposed = by_onednn and not self.in_place and wide
        self.sum: Tensor | None = None  # (V, H), or (H, V) where transposed

    def add(self, to_logits_RV: Tensor, features_RH: Tensor) -> None:
        """Adds a chunk's gradient; rows of `features_RH` whose target is ignored must be zero."""
        left, right = to_logits_RV, features_RH
        if self.transposed:
            left, right = right, left
        if not self.in_place:
            product = matmul(left.t(), right).to(self.dtype)
            self.sum = product if self.sum is None else self.sum.add_(product)
        elif self.sum is None:
            self.sum = torch.mm(left.t(), right)
        else:
            self.sum.addmm_(left.t(), right)

    def total(self) -> Tensor:
        """Returns the sum, `(V, H)`."""
        assert self.sum is not None
        return self.sum.t().contiguous() if self.transposed else self.sum


def _softmax(logits_RV: Tensor, targets_R1: Tensor, out_RV: Tensor) -> Tensor:
    """Writes the probabilities into `out_RV`, which may be the logits themselves.

    Returns:
        The targets' log-probabilities, `(R, 1)`, at least the log of the smallest normal number.
    """
    # Zero, or NaN where the target's logit is infinite, which clamping its probability would hide.
    zero_R1 = 0 * logits_RV.gather(1, targets_R1).to(out_RV.dtype)
    if out_RV.device.type == "cpu":  # on a CPU the cast inside `torch.softmax` takes twice as long
        logits_RV = out_RV.copy_(logits_RV)
    torch.softmax(logits_RV, 1, dtype=out_RV.dtype, out=out_RV)
    least = torch.finfo(out_RV.dtype).tiny
    return out_RV.gather(1, targets_R1).clamp_min(least).log() + zero_R1
