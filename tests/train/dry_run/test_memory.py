"""The prediction of memory: its parts are what a run holds, and follow the sizes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sglm.config import Config
from sglm.dni.adjoint import AdjointEstimator, adjoint_floats
from sglm.dni.critic import CriticEstimator, critic_floats, critic_parameters
from sglm.dni.estimator import FeatureGradient, Observation
from sglm.dni.gauge import REFERENCE_STEPS, gauge_floats
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import synthesizer_parameters
from sglm.model import linear, softmax_loss
from sglm.optim.precision import unchecked_precision
from sglm.optim.schedule import Mode
from sglm.runtime.memory_basis import MemoryBasis
from sglm.runtime.ranks import ALONE, Ranks
from sglm.text.batcher import Batcher
from sglm.train.build import build_learner, lookahead_steps, model_shape, stretch_windows
from sglm.train.dry_run.memory import MemoryPlan, plan_memory
from sglm.train.log.norms import NormMeter, norm_floats
from sglm.train.step import train_step
from sglm.train.truncation import draw_lengths
from sglm.train.window_decision import WindowDecision

CPU = torch.device("cpu")
TOKENS = 4000

needs_amx = pytest.mark.skipif(
    not linear.cpu_multiplies_bfloat16(), reason="needs a CPU with AMX, for bfloat16"
)


def plan(config: Config, vocab_size: int = 50, device_type: str = "cuda") -> MemoryPlan:
    """Without the libraries: as for a device, which no test here needs."""
    return plan_memory(
        config,
        model_shape(config, vocab_size),
        make_batcher(config),
        valid_bytes=0,
        device_type=device_type,
    )


def make_batcher(config: Config, ranks: Ranks = ALONE, tokens: int = TOKENS) -> Batcher:
    ids_N = np.arange(tokens, dtype=np.uint16) % 50
    train = config.train
    lengths = None
    if train.truncation == "random":
        lengths = draw_lengths(tokens // train.batch, train.window, train.seed)
    return Batcher(
        ids_N,
        batch=train.batch,
        window=train.window,
        bos_id=0,
        lengths=lengths,
        stretch=stretch_windows(config),
        lookahead=lookahead_steps(config),
        ranks=ranks,
    )


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("synthesizer", ["mlp", "recurrent", "linear"])
def test_what_lasts_is_what_the_learner_holds(
    kind: str, synthesizer: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(
        optimizer={"kind": kind, "momentum": 0.9 * (kind == "sgd"), "averaging": 0.0},
        synthesizer={"kind": synthesizer, "hidden": 6},
        model={"hidden": 32},
    )
    learner = build_learner(config, np.ones(50, dtype=np.int64), unchecked_precision("fp32", CPU))
    batcher = make_batcher(config)
    for step in range(2):
        decision = WindowDecision(mode=Mode.SYNTHETIC, probe=step == 0, inject=step == 1)
        train_step(learner, batcher.at(step), decision, learning_rate=1e-2)
    estimator = learner.estimator
    assert isinstance(estimator, LearnedEstimator)
    held: list[Tensor] = [*learner.state.hidden, *learner.state.cell]
    if estimator.recurrent_state is not None:
        held += [estimator.recurrent_state] * 2  # and the one that the next lesson keeps
    for module, optimizer in (
        (learner.model, learner.optimizer),
        (estimator.synthesizer, estimator.teaching.optimizer),
    ):
        for parameter in module.parameters():
            assert parameter.grad is not None
            held += [parameter, parameter.grad]
            held += [each for each in optimizer.state[parameter].values() if each.dim() > 0]
    assert plan(config).lasting == sum(4 * each.numel() for each in held)
    built = sum(each.numel() for each in estimator.synthesizer.parameters())
    assert synthesizer_parameters(config.synthesizer, model_shape(config, 50)) == built


def test_an_average_of_the_weights_lasts(tiny_config: Callable[..., Config]) -> None:
    averaged, plain = (plan(tiny_config(optimizer={"averaging": each})) for each in (0.1, 0.0))
    assert averaged.lasting - plain.lasting == 4 * model_shape(tiny_config(), 50).parameters


@pytest.mark.parametrize("hidden", [16, 32])  # q, or the true residual
def test_what_lasts_with_an_adjoint(hidden: int, tiny_config: Callable[..., Config]) -> None:
    settings = {"kind": "adjoint", "every": 2, "reach": 7, "factor": 1.0}
    config = tiny_config(
        synthesizer=settings, model={"hidden": hidden}, optimizer={"averaging": 0.0}
    )
    learner = build_learner(config, np.ones(50, dtype=np.int64), unchecked_precision("fp32", CPU))
    batcher = make_batcher(config)
    for step in range(3):
        decision = WindowDecision(mode=Mode.SYNTHETIC, probe=step < 2, inject=step == 2)
        train_step(learner, batcher.at(step), decision, learning_rate=1e-2)
    estimator = learner.estimator
    assert isinstance(estimator, AdjointEstimator)
    assert estimator._gradients_PBS is not None
    held = [*learner.state.hidden, *learner.state.cell, estimator._gradients_PBS]
    pairs: list[tuple[torch.nn.Module, torch.optim.Optimizer]]
    pairs = [(learner.model, learner.optimizer)]
    if estimator.expected_row is not None:
        pairs.append((estimator.expected_row, estimator.row_lessons.optimizer))
    assert len(pairs) == (2 if hidden == 16 else 1)
    for module, optimizer in pairs:
        for parameter in module.parameters():
            assert parameter.grad is not None
            held += [parameter, parameter.grad]
            held += [each for each in optimizer.state[parameter].values() if each.dim() > 0]
    assert plan(config).lasting == sum(4 * each.numel() for each in held)


@pytest.mark.parametrize(
    ("kind", "every", "reach"),
    [
        *[("adjoint", *each) for each in ((1, 15), (4, 15), (4, 40), (1, 60))],
        *[(kind, *each) for kind in ("feedback", "direct") for each in ((1, 60), (4, 40))],
    ],
)
def test_what_a_reading_allocates_was_predicted(
    kind: str, every: int, reach: int, tiny_config: Callable[..., Config]
) -> None:
    settings = {"kind": kind, "every": every, "reach": reach}
    config = tiny_config(
        train={"batch": 16, "window": 35},
        model={"hidden": 128, "layers": 2},
        synthesizer=settings,
    )
    learner = build_learner(config, np.ones(6000, dtype=np.int64), unchecked_precision("fp32", CPU))
    estimator, batcher = learner.estimator, make_batcher(config, tokens=40_000)
    for step in range(2):  # kernels are made at the first call
        decision = WindowDecision(mode=Mode.SYNTHETIC, inject=True)
        train_step(learner, batcher.at(step * every), decision, learning_rate=0.0)
    state = learner.state

    def run() -> object:
        estimator._gradients_PBS = None  # type: ignore[attr-defined]
        return estimator.estimate(state)

    basis = MemoryBasis(16, True, 1.0)
    shape = model_shape(config, 6000)
    kept, reading = adjoint_floats(config.synthesizer, shape, basis, window=35, stretch=every)
    # As for a pass.
    assert allocated(run) == pytest.approx(4 * (kept + reading), rel=0.25)


@pytest.mark.parametrize("words", [300, 40_000])  # all logits of a window at once, or fewer
def test_what_a_critic_holds_was_predicted(words: int, tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(
        train={"batch": 16, "window": 35},
        model={"hidden": 128, "layers": 2},
        synthesizer={"kind": "critic"},
    )
    learner = build_learner(
        config, np.ones(words, dtype=np.int64), unchecked_precision("fp32", CPU)
    )
    estimator, shape = learner.estimator, model_shape(config, words)
    assert isinstance(estimator, CriticEstimator)
    assert critic_parameters(config.synthesizer, shape) == sum(
        each.numel() for each in estimator.critic.parameters()
    )
    window = make_batcher(config, tokens=40_000).at(1)
    features_TBH = torch.randn(35, 16, 128)
    observation = Observation(
        gradient_BS=torch.zeros(16, shape.state_size),
        outgoing=learner.state,
        injected=True,
        probe=False,
        features=FeatureGradient(features_TBH, features_TBH, window.targets_TB),
    )
    estimator.enter_window(learner.state)

    def run() -> object:
        return estimator.end_window(observation)

    run()  # kernels are made at the first call
    floats = critic_floats(config.synthesizer, shape, MemoryBasis(16, True, 1.0), window=35)
    # As for a pass.
    assert allocated(run) == pytest.approx(4 * floats, rel=0.25)


@pytest.mark.parametrize("kind", ["feedback", "direct"])
def test_matrices_that_stand_for_weights_last(
    kind: str, tiny_config: Callable[..., Config]
) -> None:
    """Besides what an adjoint holds."""
    config = tiny_config(synthesizer={"kind": kind}, model={"hidden": 24, "embedding": 16})
    learner = build_learner(config, np.ones(50, dtype=np.int64), unchecked_precision("fp32", CPU))
    assert isinstance(learner.estimator, AdjointEstimator)
    way_back: Any = learner.estimator.way_back
    if kind == "direct":
        held = [way_back.matrix_SR]
    else:
        held = [each for pair in way_back.keywords["layers"].matrices for each in pair]
    floats = sum(each.numel() for each in held if each is not None)
    adjoint = tiny_config(model={"hidden": 24, "embedding": 16})
    assert plan(config).lasting - plan(adjoint).lasting == 4 * floats


@pytest.mark.parametrize(("lanes", "mode"), [(16, "alternating"), (16, "real"), (3, "alternating")])
def test_a_gauge_is_planned_where_one_is_built(
    lanes: int, mode: str, tiny_config: Callable[..., Config]
) -> None:
    schedule = {"mode": mode, "cycles": [200.0, 200.0]}  # long enough
    config = tiny_config(train={"batch": lanes}, schedule=schedule)
    learner = build_learner(config, np.ones(50, dtype=np.int64), unchecked_precision("fp32", CPU))
    assert ("gauge" in plan(config).situations) is (learner.gauge is not None)
    assert (learner.gauge is not None) is (lanes == 16 and mode == "alternating")


def test_what_processes_average_of_a_gauge_is_planned(tiny_config: Callable[..., Config]) -> None:
    """One of its four effects at a time is copied, to be sent."""
    shape, basis = model_shape(tiny_config(), 50), MemoryBasis(8, True, 1.0)
    one, two = (gauge_floats(shape, basis, window=5, processes=count) for count in (1, 2))
    assert two - one == sum(shape.layer_weights)


def test_what_the_gauge_allocates_was_predicted(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(train={"batch": 16, "window": 35}, model={"hidden": 128, "layers": 2})
    learner = build_learner(config, np.ones(6000, dtype=np.int64), unchecked_precision("fp32", CPU))
    batcher, gauge = make_batcher(config, tokens=40_000), learner.gauge
    assert gauge is not None
    window, state = batcher.at(0), learner.state
    injected_BS = torch.zeros(16, learner.model.shape.state_size)

    def run() -> object:
        gauge.observe(
            learner.model,
            state,
            window.inputs_TB,
            injected_BS=injected_BS,
            coming=batcher.ahead(0, REFERENCE_STEPS),
        )
        return gauge

    run()  # kernels are made at the first call
    floats = gauge_floats(model_shape(config, 6000), MemoryBasis(16, True, 1.0), window=35)
    # As for a pass.
    assert allocated(run) == pytest.approx(4 * floats, rel=0.25)


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_what_a_measured_update_allocates_was_predicted(
    kind: str, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config(model={"hidden": 64}, optimizer={"kind": kind, "weight_decay": 0.1})
    learner = build_learner(config, np.ones(6000, dtype=np.int64), unchecked_precision("fp32", CPU))
    norms = NormMeter(learner.model, optimizer=learner.optimizer, sums={})
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()  # the moments are made at the first one
    norms.measure_next()
    floats = norm_floats(config.optimizer, model_shape(config, 6000))
    # All but the biases, 1.4 % here.
    assert allocated(learner.optimizer.step) == pytest.approx(4 * floats, rel=0.02)
    assert plan(config, 6000).situations["update"] == 4 * floats


def test_real_gradients_alone_need_no_synthesizer(tiny_config: Callable[..., Config]) -> None:
    real = plan(tiny_config(schedule={"mode": "real"}))
    assert "synthesizer" not in real.situations
    assert real.peak < plan(tiny_config()).peak


def test_memory_follows_the_steps_read_in_one_pass(tiny_config: Callable[..., Config]) -> None:
    def forward(**train: object) -> int:
        config = tiny_config(schedule={"mode": "real"}, train=train)
        # The weights have no gradients then: they come off what lasts.
        gradients = 4 * model_shape(config, 50).parameters
        return plan(config).situations["forward"] + gradients

    # The loss is that of the window, whatever the horizon.
    per_window = forward(horizon=10) - forward()
    assert per_window > 0
    assert forward(horizon=50) - forward() == 9 * per_window
    assert forward(batch=8) == 2 * forward(batch=4)


def test_a_large_vocabulary_costs_chunks_not_logits(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(
        train={"batch": 100, "window": 40}, schedule={"mode": "real"}, model={"hidden": 8}
    )
    logits = 4 * 100 * 40 * 33_000
    assert plan(config, 33_000).peak < logits


def test_only_a_cpu_holds_libraries_and_what_is_saved(tiny_config: Callable[..., Config]) -> None:
    on_cpu, on_gpu = plan(tiny_config(), device_type="cpu"), plan(tiny_config())
    assert on_gpu.base == 0
    assert on_cpu.base > 50 * 2**20  # torch alone is more
    assert "counting" in on_cpu.situations.keys() - on_gpu.situations.keys()


def test_cutoffs_of_a_large_vocabulary_are_planned_for(
    tiny_config: Callable[..., Config],
) -> None:
    model = {"softmax": "adaptive", "cutoffs": [4000, 20_000]}
    full, adaptive = (
        plan(tiny_config(model=softmax, train={"batch": 20, "window": 35}), 33_000, "cpu")
        for softmax in ({}, model)
    )
    assert adaptive.situations["forward"] < full.situations["forward"]


def allocated(work: Callable[[], object]) -> int:
    """Bytes of tensors at the most while `work` runs, above those at its beginning."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    "train",
    [{}, {"horizon": 210}, {"horizon": 560}, {"truncation": "random"}],
    ids=["window", "horizon", "segments", "random"],
)
@pytest.mark.parametrize(
    ("vocab_size", "units", "library"),
    [
        (60, 128, "MKL"),
        (6000, 128, "MKL"),
        (6000, 128, "oneDNN"),
        (16_000, 256, "MKL"),
        (16_000, 256, "oneDNN"),
        (16_000, 256, "oneDNN, adding in place"),
        *(pytest.param(*sizes, "bf16", marks=needs_amx) for sizes in ((60, 128), (6000, 128))),
        pytest.param(16_000, 256, "bf16", marks=needs_amx),
    ],
    ids=[
        *("logits", "chunks", "chunks onednn", "softmax", "softmax onednn", "softmax in place"),
        *("half logits", "half chunks", "half softmax"),
    ],
)
def test_what_a_pass_allocates_was_predicted(
    train: dict[str, object],
    vocab_size: int,
    units: int,
    library: str,
    tiny_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "mkl_on_intel", lambda: library == "MKL")
    if library.endswith("in place"):
        monkeypatch.setattr(softmax_loss, "ADDED_IN_PLACE", 0)
    config = tiny_config(
        train={"batch": 16, "window": 35, **train},
        model={"hidden": units, "layers": 2},
        schedule={"mode": "real"},
    )
    counts_V = np.ones(vocab_size, dtype=np.int64)
    precision = "bf16" if library == "bf16" else "fp32"
    learner = build_learner(config, counts_V, unchecked_precision(precision, CPU))
    batcher = make_batcher(config, tokens=40_000)
    longest, steps = max(batcher.lengths), config.train.horizon or max(batcher.lengths)
    inputs_TB = torch.zeros(steps, 16, dtype=torch.int64)

    def run() -> object:
        return learner.window_pass(inputs_TB, inputs_TB[:longest], learner.state.as_leaf())

    run()  # kernels are made at the first call
    shape = model_shape(config, vocab_size)
    whole = plan_memory(
        config, shape, batcher, valid_bytes=0, device_type="cpu", precision=precision
    )
    # Weights have no gradients there, which are counted in what lasts.
    predicted = whole.situations["forward"] + 4 * shape.parameters
    # The goal; here no heap's holes blur it.
    assert allocated(run) == pytest.approx(predicted, rel=0.15)


@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
def test_what_a_pass_with_an_adaptive_softmax_allocates_was_predicted(
    library: str, tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "mkl_on_intel", lambda: library == "MKL")
    config = tiny_config(
        train={"batch": 16, "window": 35},
        model={"hidden": 256, "layers": 2, "softmax": "adaptive"},
        schedule={"mode": "real"},
    )
    counts_V = 100_000 // np.arange(1, 16_001)  # Zipf's law
    learner = build_learner(config, counts_V, unchecked_precision("fp32", CPU))
    shares_V = (counts_V + 1) / (counts_V + 1).sum()
    drawn_TB = np.random.default_rng(0).choice(16_000, (36, 16), p=shares_V)
    ids_TB = torch.from_numpy(drawn_TB)

    def run(*, back: bool) -> object:
        outputs = learner.window_pass(ids_TB[:-1], ids_TB[1:], learner.state.as_leaf())
        if back:
            outputs.objective_nats.backward()  # type: ignore[no-untyped-call]
        return outputs

    run(back=False)  # kernels are made at the first call
    shape, batcher = learner.model.shape, make_batcher(config, tokens=40_000)
    whole = plan_memory(config, shape, batcher, valid_bytes=0, device_type="cpu")
    for back, situation, tolerance in ((False, "forward", 0.2), (True, "backward", 0.1)):
        predicted = whole.situations[situation] + 4 * shape.parameters
        # A forward pass is not the peak; how many tokens a tail has is guessed.
        assert allocated(lambda back=back: run(back=back)) == pytest.approx(
            predicted, rel=tolerance
        )


def test_processes_hold_their_own_lanes(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(train={"batch": 80, "window": 40}, schedule={"mode": "real"})
    shape = model_shape(config, 50)
    alone, shared = (
        plan_memory(
            config,
            shape,
            make_batcher(config, Ranks(rank=0, count=count)),
            valid_bytes=0,
            device_type="cuda",
        )
        for count in (1, 2)
    )
    assert shared.situations["forward"] == pytest.approx(alone.situations["forward"] / 2, rel=0.05)
    half = plan(config.model_copy(update={"train": config.train.model_copy(update={"batch": 40})}))
    weights = 4 * shape.parameters
    # What lasts is that of half the lanes, and the gradients as they are sent.
    assert shared.lasting == half.lasting + weights
