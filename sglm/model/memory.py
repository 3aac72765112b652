"""Estimates of the memory that the network needs in training, counted in float32 numbers."""

import math
from collections.abc import Collection, Iterable
from itertools import pairwise

from sglm.model import softmax_loss
from sglm.model.language_model import DropoutRates, ModelShape
from sglm.model.linear import ROWS_STEP, onednn_is_better
from sglm.model.lstm_layer import layer_floats
from sglm.model.softmax_loss import WORTHWHILE_PRODUCTS, chunk_rows, even_rows
from sglm.runtime.memory_basis import MemoryBasis

# oneDNN builds and keeps a kernel for each number of rows, in each of a chunk's products. It is
# counted at about half of its size (`sglm.model.linear`); the predictions that were compared with
# measured peaks (docs/log.md) were made with this number.
_KERNEL_BYTES, _KERNELS_OF_A_CHUNK = 2**18, 3


def activation_floats(
    shape: ModelShape,
    rates: DropoutRates,
    basis: MemoryBasis,
    *,
    steps: int,
    calls: int,
    random: bool,
) -> float:
    """Returns the floats that the network keeps for its backward pass.

    Args:
        shape, rates: Shape and dropout rates of the network.
        basis: Number of lanes, and where they are computed.
        steps: Number of steps that are read in one pass.
        calls: Number of calls of torch's LSTM that a layer needs for these steps.
        random: Whether the window is cut at random. Its parts are then read one after another, each
            through all layers.
    """
    rows, units, last = basis.lanes * steps, sum(shape.widths), shape.widths[-1]
    product = basis.product_size
    kept: float = rows * shape.embedding * ((1 if rates.input else 0) + product)
    kept += sum(
        layer_floats(inputs, width, basis, steps=steps, calls=calls)
        for inputs, width in zip(shape.input_widths, shape.widths, strict=True)
    )
    if basis.on_cpu:
        # The outputs of several calls are concatenated: for every layer, or for the last one only.
        kept += product * rows * (last if random else units) * (calls > 1)
        if product < 1:  # the matrices, cast for every pass through the layers
            kept += product * sum(shape.layer_weights) * (calls if random else 1)
    kept += product * rows * (units - last) * (rates.between > 0)
    kept += product * rows * last * (rates.output > 0)
    # The masks, and the masked matrices.
    kept += 2 * 4 * sum(width**2 for width in shape.widths) * (rates.weight > 0)
    return kept + rows * (rates.embedding > 0)


def softmax_floats(shape: ModelShape, tokens: int, basis: MemoryBasis) -> tuple[float, float]:
    """Returns the floats that a loss of `tokens` tokens holds: `(forward pass, backward pass)`."""
    passes = [
        _loss_floats(count, basis, vocab_size=entries, features=shape.widths[-1])
        for count, entries in _stage_sizes(shape, tokens)
    ]
    backward = sum(after for _, after in passes)
    forward = backward + max(before - after for before, after in passes)
    # The gradients of the clusters' rows are copied into one matrix.
    return forward, backward + (shape.vocab_size * shape.widths[-1] if shape.cutoffs else 0)


def softmax_kernel_bytes(shape: ModelShape, tokens: Collection[int]) -> int:
    """Returns the bytes of kernels that oneDNN keeps for the losses of windows of these tokens."""
    head, *tails = zip(*(_stage_sizes(shape, each) for each in tokens), strict=True)
    kept = _kept_kernel_bytes((count for count, _ in head), head[0][1])
    for tail in tails:  # its number of tokens differs from window to window
        most = max(count for count, _ in tail)
        kept += _kept_kernel_bytes(range(ROWS_STEP, most + 1, ROWS_STEP), tail[0][1])
    return kept


def _stage_sizes(shape: ModelShape, tokens: int) -> list[tuple[int, int]]:
    """Returns the numbers of tokens and of entries of each softmax.

    A tail's tokens are twice the number that Zipf's law predicts, because windows differ.
    """
    if not shape.cutoffs:
        return [(tokens, shape.vocab_size)]
    bounds = (*shape.cutoffs, shape.vocab_size)
    sizes = [(tokens, bounds[0] + len(shape.cutoffs))]
    for start, end in pairwise(bounds):
        share = math.log(end / start) / math.log(shape.vocab_size)
        count = min(tokens, math.ceil(2 * share * tokens))
        sizes.append((count + -count % ROWS_STEP, end - start))
    return sizes


def _loss_floats(
    tokens: int, basis: MemoryBasis, *, vocab_size: int, features: int
) -> tuple[float, float]:
    """Returns the floats that one softmax's loss holds: `(forward pass, backward pass)`."""
    rows = chunk_rows(vocab_size, "cpu" if basis.on_cpu else "cuda")
    weight, product = vocab_size * features, basis.product_size
    if tokens <= rows and (not basis.on_cpu or tokens * weight < WORTHWHILE_PRODUCTS):
        # Logits and log-softmax; in the backward pass log-softmax, its gradient, the logits'.
        return 2 * tokens * vocab_size, 3 * tokens * vocab_size
    # A chunk's logits are overwritten by their gradient. oneDNN allocates a transposed copy of the
    # chunk, or at the end of the weights' gradient; and a later chunk's gradient of the weights,
    # before it is added. All gradients already exist when the backward pass begins.
    later = tokens > rows
    gradients = weight + product * tokens * features + vocab_size
    chunk = even_rows(tokens, rows) * vocab_size
    if not basis.on_cpu:  # logits in half precision beside float32 ones: at most as two of float32
        return 2 * chunk + later * weight + gradients, gradients
    if product < 1:  # also in half precision: the logits, the weights, and a chunk's gradient of W
        half = product * (chunk + 2 * weight)
        return chunk + half + later * weight + gradients, gradients
    if not onednn_is_better() or weight >= softmax_loss.ADDED_IN_PLACE:
        return chunk + gradients, gradients
    transposed = weight if tokens > features else chunk + later * weight
    return chunk + transposed + gradients, gradients


def _kept_kernel_bytes(tokens: Iterable[int], vocab_size: int) -> int:
    """Returns the bytes that oneDNN keeps for losses of these numbers of tokens: kernels for every
    number of rows beyond the first."""
    if not onednn_is_better():
        return 0
    most, sizes = chunk_rows(vocab_size, "cpu"), set[int]()
    for each in tokens:
        rows = even_rows(each, most)
        sizes |= {rows, each % rows or rows}
    return _KERNEL_BYTES * _KERNELS_OF_A_CHUNK * (len(sizes) - 1)
