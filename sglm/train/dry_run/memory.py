"""How much memory a run will take at its worst moment, from what it will hold there.

A run goes through a few situations, and its peak is that of the hungriest: counting the words,
the end of a step's forward pass, its backward pass, the synthesizer learning, an evaluation,
saving. `scripts/memory.py` compares the prediction with measured peaks (docs/results.md).

Numbers are counted in units of float32's; one that is half as large counts half. Shapes: B lanes of
this process, R steps read in one pass (the window, the horizon, or the longest random window),
N = B·T predicted tokens, V vocabulary, E embedding, H units of a layer, S coordinates of a state,
C steps read ahead.
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sglm.config import Config
from sglm.dni.boundary import reads_side_by_side
from sglm.dni.synthesizer import make_synthesizer
from sglm.model.language_model import PIECE_STEPS, ModelShape
from sglm.model.linear import onednn_is_better
from sglm.model.softmax_loss import ADDED_IN_PLACE, WORTHWHILE_PRODUCTS, chunk_rows, even_rows
from sglm.scoring.stream import CHUNK_STEPS, LOGIT_ENTRIES, LOGIT_ROWS
from sglm.text.batcher import Batcher
from sglm.train.build import COUNTED_AT_ONCE, STRETCH, lookahead_steps, synthesizer_hidden
from sglm.train.truncation import part_steps

_FLOAT = 4

# What cuDNN's LSTM keeps for its backward pass, per step, lane and unit: gates, cell, tanh of it,
# output. Unmeasured.
_CUDNN_KEEPS = 8.0
# oneDNN's (CPU, float32) keeps gates and output; and of states and their gradients so many vectors
# as wide as the wider of input and output, and so many of the output's width, at every step and
# once before the first. Read off the workspace that torch's `mkldnn_rnn_layer` returns (2.13) for
# twenty shapes, where it is right within 5 %.
_ONEDNN_WIDE, _ONEDNN_NARROW = 6.5, 4.9
# The same in bfloat16, which keeps cells and gradients in float32: 0.70 to 0.75 of its bytes.
_ONEDNN_HALF = 0.71
# What it needs besides while it runs backwards, per step, lane and unit; and per weight (oneDNN
# reorders the matrices, and makes their gradients in an order of its own).
_LSTM_WORKS, _LSTM_REORDERS = 6.0, 3.0
# A kernel that oneDNN made for a number of rows, and keeps: one for each of the loss's products.
_KERNEL_BYTES, _HEAD_KERNELS = 2**18, 3
# A GRU cell made of small operations, per unit: at most while it predicts, and while it learns.
_GRU_PREDICTS, _GRU_LEARNS = 9, 12
# Memory that was freed does not always fit what is asked for next: the share of what is held that
# lies in holes of a CPU's heap, 5 to 14 % where it was read from the allocator's own books.
_HOLES = 0.09


class Place(NamedTuple):
    """Where a run computes.

    Attributes:
        on_cpu: or else on a GPU.
        product: the size of a number that goes into a matrix product or comes out of one.
    """

    on_cpu: bool
    product: float


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes at the peak.

    Attributes:
        base: of the process itself: libraries, once they are loaded and used (0 on a GPU).
        lasting: weights, their gradients, moments, carried states, of model and synthesizer;
            kernels made for windows of various lengths; the token store, which is mapped into
            memory (the system can take that part back).
        situations: what is needed on top of both, by situation.
        holes: what lies unused between all that, at the peak.
    """

    base: int
    lasting: int
    situations: dict[str, int]
    holes: int = 0

    @property
    def worst(self) -> str:
        """The situation of the peak."""
        return max(self.situations, key=self.situations.__getitem__)

    @property
    def peak(self) -> int:
        return self.base + self.lasting + self.situations[self.worst] + self.holes


def plan_memory(
    config: Config,
    shape: ModelShape,
    batcher: Batcher,
    valid_bytes: int,
    device_type: str,
    precision: str = "fp32",
) -> MemoryPlan:
    """The plan of a training run; on a GPU as if in float32 (in half precision it takes less).

    Args:
        config, shape: of the run.
        batcher: of this process, whose lanes count; others have theirs.
        valid_bytes: size of the validation split on disk.
        device_type: `"cpu"`: everything; `"cuda"`: the device's memory, unmeasured so far.
        precision: name of the products' type.
    """
    on_cpu, lanes = device_type == "cpu", len(batcher.lanes)
    place = Place(on_cpu, 0.5 if on_cpu and precision != "fp32" else 1.0)
    processes = config.train.batch // lanes
    # From here on these lanes are all there is.
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch": lanes})})
    weights = parameter_count(shape)
    moments = (config.optimizer.momentum > 0) if config.optimizer.kind == "sgd" else 2
    synthesizer = synthesizer_parameters(config, shape)
    state = config.train.batch * 2 * sum(shape.widths)
    features, stretch = _stretch(config, shape, place)
    memory = _memory(config, shape)
    # One memory is carried, the one before it waits to be learned from.
    lasting = (2 + moments) * weights + 4 * synthesizer + state + stretch + 2 * memory
    # DistributedDataParallel keeps a second copy of the gradients, for what is sent.
    lasting += weights * (processes > 1)
    outside = batcher.ids_N.nbytes + valid_bytes + _kernels(shape, batcher)
    situations = {
        # What is injected is predicted while the forward pass still waits.
        "forward": _forward(config, shape, batcher, place) + _GRU_PREDICTS * memory,
        "backward": _backward(config, shape, batcher, place),
        "evaluation": _evaluation(shape),
    }
    if synthesizer:
        situations["synthesizer"] = _learning(config, shape, place)
        if config.synthesizer.teach_every:
            situations["exact gradient"] = _teaching(config, shape, place)
    if on_cpu:
        if processes > 1:  # what belongs to lanes is gathered; saving takes nothing else
            situations["saving"] = processes * (state + features + memory)
        # Before there is anything else; it is seldom the peak.
        counting = 8 * min(len(batcher.ids_N), COUNTED_AT_ONCE) // _FLOAT
        situations["counting"] = max(0, counting - lasting)
    return MemoryPlan(
        base=loaded_bytes(config, precision) if on_cpu else 0,
        lasting=_FLOAT * int(lasting) + (outside if on_cpu else 0),
        situations={name: _FLOAT * int(floats) for name, floats in situations.items()},
        holes=int(_HOLES * _FLOAT * (lasting + max(situations.values()))) if on_cpu else 0,
    )


def parameter_count(shape: ModelShape) -> int:
    """Weights of the language model."""
    softmax = shape.vocab_size * (1 + (0 if shape.tied else shape.widths[-1]))
    return shape.vocab_size * shape.embedding + sum(_lstm_weights(shape)) + softmax


def synthesizer_parameters(config: Config, shape: ModelShape) -> int:
    """Weights of the synthesizer; 0 without one."""
    if config.schedule.mode == "real":
        return 0
    settings = config.synthesizer
    with torch.device("meta"):
        built = make_synthesizer(
            settings.kind,
            2 * sum(shape.widths),
            synthesizer_hidden(config),
            settings.auxiliary,
            shape.embedding + shape.widths[-1],
        )
    return sum(parameter.numel() for parameter in built.parameters())


def _kernels(shape: ModelShape, batcher: Batcher) -> int:
    """Bytes of what oneDNN keeps for the loss of chunks of more than one size."""
    if not onednn_is_better():
        return 0
    most, sizes = chunk_rows(shape.vocab_size, "cpu"), set[int]()
    for length in set(batcher.lengths):
        tokens = len(batcher.lanes) * length
        rows = even_rows(tokens, most)
        sizes |= {rows, tokens % rows or rows}
    return _KERNEL_BYTES * _HEAD_KERNELS * (len(sizes) - 1)


def _lstm_weights(shape: ModelShape) -> list[int]:
    inputs = (shape.embedding, *shape.widths[:-1])
    return [
        4 * units * (size + units + 1) for size, units in zip(inputs, shape.widths, strict=True)
    ]


def _read_steps(config: Config, batcher: Batcher) -> int:
    """R."""
    return config.train.horizon or max(batcher.lengths)


def _pieces(config: Config, steps: int) -> int:
    """In how many calls of torch's LSTM a layer reads so many steps."""
    train = config.train
    most = part_steps(train.window) if train.truncation == "random" else PIECE_STEPS
    return -(-steps // most)


def _lstm_keeps(
    batch: int, steps: int, pieces: int, inputs: int, units: int, product: float = 1.0
) -> float:
    """What an LSTM layer on the CPU keeps for its backward pass, its output included."""
    vectors = _ONEDNN_WIDE * max(inputs, units) + _ONEDNN_NARROW * units
    workspace = batch * ((steps + pieces) * vectors + steps * 4 * units)
    return workspace * (1.0 if product == 1 else _ONEDNN_HALF) + batch * steps * units * product


def _activations(config: Config, shape: ModelShape, steps: int, place: Place) -> float:
    """What the network keeps of so many steps for its backward pass."""
    rates, batch = config.dropout, config.train.batch
    rows, units, pieces = batch * steps, sum(shape.widths), _pieces(config, steps)
    kept: float = rows * shape.embedding * ((1 if rates.input else 0) + place.product)
    if place.on_cpu:
        inputs = (shape.embedding, *shape.widths[:-1])
        kept += sum(
            _lstm_keeps(batch, steps, pieces, size, width, place.product)
            for size, width in zip(inputs, shape.widths, strict=True)
        )
        # Outputs of pieces are put together: of every layer, or of the last.
        random = config.train.truncation == "random"
        together = shape.widths[-1] if random else units
        kept += place.product * rows * together * (pieces > 1)
        if place.product < 1:  # the matrices, cast for every pass over the layers
            kept += place.product * sum(_lstm_weights(shape)) * (pieces if random else 1)
    else:
        kept += _CUDNN_KEEPS * rows * units
    kept += place.product * rows * (units - shape.widths[-1]) * (rates.between > 0)
    kept += place.product * rows * shape.widths[-1] * (rates.output > 0)
    # The masks, and what they made of the matrices.
    kept += 2 * 4 * sum(width**2 for width in shape.widths) * (rates.weight > 0)
    kept += rows * (rates.embedding > 0)
    return kept


def _head(shape: ModelShape, tokens: int, place: Place) -> tuple[float, float]:
    """The loss: `(most at once in the forward pass, in the backward pass)`."""
    rows = chunk_rows(shape.vocab_size, "cpu" if place.on_cpu else "cuda")
    products = tokens * shape.vocab_size * shape.widths[-1]
    if tokens <= rows and (not place.on_cpu or products < WORTHWHILE_PRODUCTS):
        # Logits and their log-softmax; backwards that, its gradient and that of the logits.
        return 2 * tokens * shape.vocab_size, 3 * tokens * shape.vocab_size
    # A chunk's logits, which become their own gradient. oneDNN makes a transpose: of the chunk, or
    # of the weights' gradient in the end; and that of a later chunk before it is added. All
    # gradients are there already when the backward pass begins.
    weight, later = shape.vocab_size * shape.widths[-1], tokens > rows
    gradients = weight + place.product * tokens * shape.widths[-1] + shape.vocab_size
    chunk = even_rows(tokens, rows) * shape.vocab_size
    if not place.on_cpu:  # half logits beside float32 ones: as two of float32 at most
        return 2 * chunk + later * weight + gradients, gradients
    if place.product < 1:  # half ones beside them, the weights cast, and a chunk's gradient of them
        half = place.product * (chunk + 2 * weight)
        return chunk + half + later * weight + gradients, gradients
    if not onednn_is_better() or weight >= ADDED_IN_PLACE:
        return chunk + gradients, gradients
    transposed = weight if tokens > shape.widths[-1] else chunk + later * weight
    return chunk + transposed + gradients, gradients


def _forward(config: Config, shape: ModelShape, batcher: Batcher, place: Place) -> float:
    """At the end of the forward pass.

    Weights have no gradients then: they are counted in what lasts, and come off.
    """
    tokens = config.train.batch * max(batcher.lengths)
    kept = _activations(config, shape, _read_steps(config, batcher), place)
    return kept + _head(shape, tokens, place)[0] - parameter_count(shape)


def _backward(config: Config, shape: ModelShape, batcher: Batcher, place: Place) -> float:
    """The last layer goes first, while all others wait; or the embedding, when all is over.

    Weights have no gradients yet when it begins, as in the forward pass.
    """
    steps = _read_steps(config, batcher)
    tokens = config.train.batch * max(batcher.lengths)
    kept = _activations(config, shape, steps, place)
    last = shape.widths[-1]
    at_once = -(-steps // _pieces(config, steps)) if place.on_cpu else steps
    works = _LSTM_WORKS * config.train.batch * at_once * last
    works += _LSTM_REORDERS * _lstm_weights(shape)[-1]
    head = _head(shape, tokens, place)[1]
    begins = kept - parameter_count(shape) + max(head, works + min(head, shape.vocab_size * last))
    # The embedding's gradient; on a GPU from the words read, from the softmax, and their sum.
    apart = shape.tied and not place.on_cpu
    return max(begins, (1 + apart) * shape.vocab_size * shape.embedding)


def _evaluation(shape: ModelShape) -> float:
    rows = max(1, min(LOGIT_ROWS, CHUNK_STEPS, LOGIT_ENTRIES // shape.vocab_size))
    return (
        2 * rows * shape.vocab_size
        + CHUNK_STEPS * 8 * max(shape.widths)
        + max(_lstm_weights(shape))
    )


def _stretch(config: Config, shape: ModelShape, place: Place) -> tuple[float, float]:
    """What a lookahead synthesizer holds of a stretch from its start to its end: `(features of its
    tokens, which are saved too; all)`."""
    ahead, lanes = lookahead_steps(config), config.train.batch
    if ahead is None or config.synthesizer.kind != "lookahead":
        return 0, 0
    steps, window = config.synthesizer.lookahead, config.train.window
    if reads_side_by_side(window, steps):
        lanes *= STRETCH + 1
    else:
        steps = STRETCH * window + ahead
    read = lanes * steps
    features = read * (shape.embedding + shape.widths[-1])
    units = synthesizer_hidden(config)
    reader = _CUDNN_KEEPS * read * units
    if place.on_cpu:
        reader = _lstm_keeps(lanes, steps, 1, units, units)
    # The features, the same normalised; their projection; the reader's own.
    return features, 2 * features + 2 * read * units + reader


def _memory(config: Config, shape: ModelShape) -> int:
    """What a recurrent synthesizer remembers of the lanes: of every coordinate of their states."""
    if config.schedule.mode == "real" or config.synthesizer.kind != "recurrent":
        return 0
    return config.train.batch * 2 * sum(shape.widths) * synthesizer_hidden(config)


def _learning(config: Config, shape: ModelShape, place: Place) -> float:
    """One regression of the synthesizer, while the model's gradients wait for its own update."""
    settings, train = config.synthesizer, config.train
    size, hidden = 2 * sum(shape.widths), synthesizer_hidden(config)
    if settings.kind == "recurrent":
        return _GRU_LEARNS * _memory(config, shape)
    lessons = train.batch * (1 if lookahead_steps(config) is None else STRETCH)
    # States, gradients, predictions, errors and their gradients.
    regression = lessons * (8 * size + 24 * hidden)
    return regression + 2 * _stretch(config, shape, place)[0]


def _teaching(config: Config, shape: ModelShape, place: Place) -> float:
    """The exact gradient of a stretch and what follows it; weights have none then."""
    steps = STRETCH * config.train.window + (lookahead_steps(config) or 0)
    held = _activations(config, shape, steps, place) - parameter_count(shape)
    return held + max(_head(shape, config.train.batch * steps, place))


def loaded_bytes(config: Config, precision: str = "fp32") -> int:
    """Resident size of this process once all that a run needs is loaded and has been used.

    Measured, not known: it differs between builds of torch and from machine to machine. Much of a
    library comes into memory only with the first product, so a miniature of the run is run.
    """
    import sglm.train.loop  # noqa: F401
    from sglm.optim.precision import precision_of
    from sglm.optim.schedule import Mode, StepPlan
    from sglm.scoring.stream import evaluate_stream
    from sglm.train.build import build_learner
    from sglm.train.step import train_step

    device = torch.device("cpu")
    small = {"hidden": 16, "embedding": 16}
    miniature = config.model_copy(
        update={
            "model": config.model.model_copy(update=small),
            "train": config.train.model_copy(update={"batch": 2, "window": 2, "horizon": None}),
        }
    )
    ids_N = np.arange(100, dtype=np.uint16) % 32
    learner = build_learner(
        miniature, np.ones(32, dtype=np.int64), precision_of(precision, device), device
    )
    batcher = Batcher(
        ids_N, batch=2, window=2, eos_id=0, stretch=STRETCH, lookahead=lookahead_steps(config)
    )
    for step in range(STRETCH + 1):
        train_step(learner, batcher.at(step), StepPlan(1.0, Mode.REAL, 0), step)
    evaluate_stream(learner.model, ids_N, 0)
    return resident_bytes()


def resident_bytes() -> int:
    """What of this process is in memory now; where the system does not say, at its peak so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
