"""The embedding for tied weights, where the softmax uses the same matrix.

The matrix gets a gradient from each of its two uses. The softmax's gradient is dense. The
embedding's has only the rows of the words read, but autograd would allocate a whole matrix of zeros
for them and add it: three passes over the vocabulary for the few hundred words of a window
(docs/log.md has the cost). Here both uses are one node of the graph, which adds only those rows to
the dense gradient.

Shapes: … any dimensions, V vocabulary, E embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def tied_embedding(ids: Tensor, weight_VE: Tensor) -> tuple[Tensor, Tensor]:
    """Returns `(embedded (…, E), weight_VE)`; the softmax must use this matrix, which is the same.

    The parameter's gradient is the one that autograd would compute, up to rounding. The gradient
    that arrives at the returned matrix is changed in place, so nothing else may share its memory.
    The gradient of a matrix product is safe; that of a sum of two tensors is not.

    Args:
        ids: Token ids `(…)`, int64, on a CPU.
        weight_VE: The parameter.
    """
    embedded, weight = _TiedEmbedding.apply(ids, weight_VE)  # type: ignore[no-untyped-call]
    return embedded, weight


class _TiedEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight_VE: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(ids)
        ctx.words = len(weight_VE)
        return F.embedding(ids, weight_VE), weight_VE.view_as(weight_VE)

    @staticmethod
    def backward(
        ctx: Any, to_embedded: Tensor | None, to_weight_VE: Tensor | None
    ) -> tuple[None, Tensor | None]:
        if to_embedded is None:
            return None, to_weight_VE
        (ids,) = ctx.saved_tensors
        if to_weight_VE is None or torch.is_grad_enabled():  # only one use, or a second derivative
            rows_VE: Tensor = torch.ops.aten.embedding_dense_backward(
                to_embedded, ids, ctx.words, -1, False
            )
            return None, rows_VE if to_weight_VE is None else to_weight_VE + rows_VE
        rows = to_embedded.reshape(ids.numel(), -1)
        return None, to_weight_VE.index_add_(0, ids.reshape(-1), rows)
