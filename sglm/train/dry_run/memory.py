"""Predicts the peak memory of a run from what it will hold in each situation.

A run goes through a few situations, and the largest sets its peak: counting the tokens, the end of
a step's forward pass, its backward pass, an update whose norms are logged, the synthesizer reading
or learning, the gauge, an evaluation, saving. What each part holds is stated beside its code; here
these amounts are added up.
`scripts.benchmarks.memory` compares the prediction with measured peaks (docs/benchmarks/).

Amounts are in units of one float32 (`sglm.runtime.memory_basis`). Shapes: R steps read in one pass
(the window, the horizon, or the longest random window), V vocabulary, E embedding.
"""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sglm.config import Config
from sglm.dni.adjoint import adjoint_floats, adjoint_parameters
from sglm.dni.critic import critic_floats, critic_parameters
from sglm.dni.gauge import gauge_floats
from sglm.dni.random_feedback import feedback_weights
from sglm.dni.synthesizer import GRU_PREDICTS, recurrent_state_floats, synthesizer_parameters
from sglm.dni.teaching import regression_floats
from sglm.model.language_model import DropoutRates, ModelShape
from sglm.model.lstm_layer import SEGMENT_STEPS, layer_backward_floats
from sglm.model.memory import activation_floats, softmax_floats, softmax_kernel_bytes
from sglm.runtime.memory_basis import FLOAT_BYTES, MemoryBasis
from sglm.scoring.predictor import NetworkPredictor, reading_floats
from sglm.scoring.stream import CHUNK_STEPS, stream_nll
from sglm.text.batcher import Batcher
from sglm.train.build import (
    COUNTED_AT_ONCE,
    build_decision_rule,
    build_schedule,
    is_gauged,
    lookahead_steps,
    stretch_windows,
)
from sglm.train.log.norms import norm_floats
from sglm.train.truncation import part_steps

# The share of a CPU's heap that is lost to fragmentation: freed blocks do not always fit the next
# request. By the allocator's own statistics it was 5 to 14 %.
_HOLES = 0.09


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The predicted memory of a run, in bytes.

    Attributes:
        base: The size of the process itself, with libraries loaded and used (0 on a GPU).
        lasting: Held throughout: weights, gradients, moments and carried states of model and
            synthesizer; kernels for windows of various lengths; the token store, which is mapped
            into memory (the system can reclaim that part).
        situations: The memory needed on top of both, by situation.
        holes: The memory lost to fragmentation at the peak.
    """

    base: int
    lasting: int
    situations: dict[str, int]
    holes: int = 0

    @property
    def worst(self) -> str:
        """The situation with the peak."""
        return max(self.situations, key=self.situations.__getitem__)

    @property
    def peak(self) -> int:
        return self.base + self.lasting + self.situations[self.worst] + self.holes


def plan_memory(
    config: Config,
    shape: ModelShape,
    batcher: Batcher,
    *,
    valid_bytes: int,
    device_type: str,
    precision: str = "fp32",
) -> MemoryPlan:
    """Predicts the memory of a training run in this process.

    For a GPU the prediction is rough, as if in float32 and without graphs: on an H200 in half
    precision, runs took 0.85 to 1.5 times as much, with graphs up to 1.6 times.

    Args:
        config, shape: The configuration and the network's sizes.
        batcher: The batcher of this process; only its own lanes count.
        valid_bytes: Size of the validation split on disk.
        device_type: `"cpu"` for the memory of the whole process, `"cuda"` for that of the device.
        precision: Name of the precision of the products.
    """
    on_cpu, lanes = device_type == "cpu", len(batcher.lanes)
    half = on_cpu and precision != "fp32"
    basis = MemoryBasis(lanes, on_cpu, 0.5 if half else 1.0)
    processes = config.train.batch // lanes
    lasting, of_lanes = _lasting(config, shape, basis)
    # DistributedDataParallel keeps a second copy of the gradients, for sending.
    lasting += shape.parameters * (processes > 1)
    longest = max(batcher.lengths)
    situations = _situations(config, shape, basis, longest=longest)
    if is_gauged(config, lanes) and _reaches_gauge(config, batcher):
        situations["gauge"] = gauge_floats(shape, basis, window=longest, processes=processes)
    outside = 0
    if on_cpu:
        if processes > 1:  # saving takes memory only because it gathers all lanes
            situations["saving"] = processes * of_lanes
        # Counting comes before anything else is allocated; it is seldom the peak.
        counting = 8 * min(len(batcher.ids_N), COUNTED_AT_ONCE) // FLOAT_BYTES
        situations["counting"] = max(0, counting - lasting)
        tokens = [lanes * length for length in set(batcher.lengths)]
        outside = batcher.ids_N.nbytes + valid_bytes + softmax_kernel_bytes(shape, tokens)
    worst = lasting + max(situations.values())
    return MemoryPlan(
        base=loaded_bytes(config, precision) if on_cpu else 0,
        lasting=FLOAT_BYTES * int(lasting) + outside,
        situations={name: FLOAT_BYTES * int(floats) for name, floats in situations.items()},
        holes=int(_HOLES * FLOAT_BYTES * worst) if on_cpu else 0,
    )


def _lasting(config: Config, shape: ModelShape, basis: MemoryBasis) -> tuple[float, float]:
    """Returns `(floats held throughout, those of them that belong to lanes and are saved)`."""
    optimizer, settings = config.optimizer, config.synthesizer
    moments = (optimizer.momentum > 0) if optimizer.kind == "sgd" else 2
    averages = optimizer.averaging > 0
    model, state = (2 + moments + averages) * shape.parameters, basis.lanes * shape.state_size
    if config.schedule.mode == "real":
        return model + state, state
    if settings.reads_text:
        kept, _ = adjoint_floats(
            settings, shape, basis, window=config.train.window, stretch=stretch_windows(config)
        )
        model += 4 * adjoint_parameters(settings, shape) + feedback_weights(settings.kind, shape)
        return model + state + kept, state + kept
    if settings.kind == "critic":
        return model + 4 * critic_parameters(settings, shape) + state, state
    recurrent = recurrent_state_floats(settings, shape, basis)
    synthesizer = 4 * synthesizer_parameters(settings, shape)
    # A recurrent synthesizer carries one state, and keeps the one before it to learn from.
    return model + synthesizer + state + 2 * recurrent, state + recurrent


def _reaches_gauge(config: Config, batcher: Batcher) -> bool:
    """Returns whether the run may be long enough for the gauge to measure."""
    rule = build_decision_rule(config)
    steps = build_schedule(config, batcher.steps_per_epoch).total_steps
    first = (rule.gauge_every or 0) // 2
    if rule.injects_once:  # measured at the beginning of the stretch in which it is due
        first = max(0, first - rule.stretch)
    return steps > first


def _situations(
    config: Config, shape: ModelShape, basis: MemoryBasis, *, longest: int
) -> dict[str, float]:
    """Returns the number of floats needed on top of `_lasting`, by situation.

    Args:
        config, shape: The configuration and the network's sizes.
        basis: The number of lanes, the device and the size of the products' type.
        longest: Number of steps of the longest window.
    """
    situations = {
        "forward": _forward(config, shape, basis, longest=longest),
        "backward": _backward(config, shape, basis, longest=longest),
        "update": norm_floats(config.optimizer, shape),
        "evaluation": reading_floats(shape, steps=CHUNK_STEPS),
    }
    settings = config.synthesizer
    if config.schedule.mode == "real":
        return situations
    if settings.reads_text:
        # It reads while the activations of the forward pass are held.
        _, reading = adjoint_floats(
            settings, shape, basis, window=config.train.window, stretch=stretch_windows(config)
        )
        return situations | {"reading": situations["forward"] + reading}
    if settings.kind == "critic":
        lesson = critic_floats(settings, shape, basis, window=config.train.window)
        return situations | {"synthesizer": lesson}
    # It predicts while the activations of the forward pass are held.
    situations["forward"] += GRU_PREDICTS * recurrent_state_floats(settings, shape, basis)
    # One regression, while the model's gradients are held for its own update.
    situations["synthesizer"] = regression_floats(settings, shape, basis)
    return situations


def _read_steps(config: Config, longest: int) -> int:
    """Returns R, the number of steps read in one pass."""
    return config.train.horizon or longest


def _calls(config: Config, steps: int) -> int:
    """Returns the number of calls of torch's LSTM in which a layer reads this many steps."""
    random = config.train.random_window
    return -(-steps // (SEGMENT_STEPS if random is None else part_steps(random)))


def _activations(config: Config, shape: ModelShape, basis: MemoryBasis, *, steps: int) -> float:
    """Returns `activation_floats` for the configuration."""
    return activation_floats(
        shape,
        DropoutRates(**config.dropout.model_dump()),
        basis,
        steps=steps,
        calls=_calls(config, steps),
        random=config.train.random_window is not None,
    )


def _forward(config: Config, shape: ModelShape, basis: MemoryBasis, *, longest: int) -> float:
    """Returns the number of floats needed at the end of the forward pass.

    Weights have no gradients then; `_lasting` counts these, so they are subtracted.
    """
    kept = _activations(config, shape, basis, steps=_read_steps(config, longest))
    return kept + softmax_floats(shape, basis.lanes * longest, basis)[0] - shape.parameters


def _backward(config: Config, shape: ModelShape, basis: MemoryBasis, *, longest: int) -> float:
    """Returns the number of floats needed in the backward pass: the larger of two moments.

    These are the last layer's backward pass, when the activations of all other layers are still
    held and weights have no gradients yet, and the embedding's, which comes last.
    """
    steps, last = _read_steps(config, longest), shape.widths[-1]
    kept = _activations(config, shape, basis, steps=steps)
    at_once = -(-steps // _calls(config, steps)) if basis.on_cpu else steps
    works = layer_backward_floats(shape.input_widths[-1], last, basis, steps=at_once)
    loss = softmax_floats(shape, basis.lanes * longest, basis)[1]
    begins = kept - shape.parameters + max(loss, works + min(loss, shape.vocab_size * last))
    # The embedding's gradient. If tied, on a GPU: the one from the words read, the one from the
    # softmax, and their sum.
    apart = shape.tied and not basis.on_cpu
    return max(begins, (1 + apart) * shape.vocab_size * shape.embedding)


def loaded_bytes(config: Config, precision: str = "fp32") -> int:
    """Measures the resident size of this process after everything that a run needs has been used.

    It is measured because it differs between builds of torch and between machines. Much of a
    library is loaded into memory only with the first product, so a miniature of the run is run.
    """
    import sglm.train.loop  # noqa: F401
    from sglm.optim.precision import unchecked_precision
    from sglm.optim.schedule import Mode, StepPlan
    from sglm.train.build import build_decision_rule, build_learner
    from sglm.train.step import train_step

    small: dict[str, Any] = {"hidden": 16, "embedding": 16}
    if config.model.softmax == "adaptive":
        small["cutoffs"] = [8, 16]
    miniature = config.model_copy(
        update={
            "model": config.model.model_copy(update=small),
            "train": config.train.model_copy(update={"batch": 2, "window": 2, "horizon": None}),
        }
    )
    ids_N = np.arange(100, dtype=np.uint16) % 32
    learner = build_learner(
        miniature, np.ones(32, dtype=np.int64), unchecked_precision(precision, torch.device("cpu"))
    )
    rule = build_decision_rule(miniature)
    plan = StepPlan(lr_factor=1.0, mode=Mode.REAL, cycle=0)
    batcher = Batcher(
        ids_N,
        batch=2,
        window=2,
        bos_id=0,
        stretch=stretch_windows(miniature),
        lookahead=lookahead_steps(miniature),
    )
    for step in range(2):  # the second one's incoming state has been observed
        window = batcher.at(step)
        decision = rule.decide(step, plan, window)
        train_step(learner, window, decision, learning_rate=learner.rate(plan))
    stream_nll(NetworkPredictor(learner.model), ids_N, 0)
    return resident_bytes()


def resident_bytes() -> int:
    """Returns the resident size of this process now or, if the system does not report it, its peak
    so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
