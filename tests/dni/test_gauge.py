"""The gauge in parameter space: its laws in float64, and that it leaves training alone."""

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from sglm.config import Config
from sglm.dni.adjoint_pass import adjoint_gradients
from sglm.dni.expected_row import softmax_residual
from sglm.dni.gauge import FEWEST_LANES, Gauge, GaugeReading, gauge_every
from sglm.dni.trust import Trust
from sglm.model.language_model import DropoutRates, LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Batcher, ComingText, Window
from sglm.train.closing_sentence import closing_sentence
from sglm.train.learner import capture, restore
from sglm.train.runaway import RunawayWatch
from sglm.train.step import train_step
from sglm.train.window_decision import DecisionRule
from tests.dni.test_adjoint import EVERY_DROPOUT, a_model, some_text, with_adjoint
from tests.dni.test_estimator import INJECT
from tests.dni.test_learned import Thread
from tests.train.test_step import CPU, T, V, all_equal, weights

LANES = 4


def batcher() -> Batcher:
    """Windows of so many lanes that there is something to measure."""
    ids_N = np.random.default_rng(0).integers(V, size=LANES * 5 * T).astype(np.uint16)
    return Batcher(ids_N, batch=LANES, window=T, bos_id=0, stretch=1, lookahead=3)


def twice(values: Tensor, dim: int) -> Tensor:
    """Two lanes, and the same two again: the halves agree, so no product has a random sign."""
    return torch.cat((values, values), dim)


def a_window(seed: int = 0) -> tuple[LSTMState, Tensor]:
    """Some state, and the inputs after it."""
    model = a_model(layers=2)
    start = model.start_state(LANES)
    generator = torch.Generator().manual_seed(seed)
    packed_BS = torch.randn(2, model.shape.state_size, generator=generator, dtype=torch.float64) / 2
    parts = start.parts_of(twice(packed_BS, 0))
    inputs_TB = twice(torch.randint(V, (T, 2), generator=generator), 1)
    return LSTMState(parts[: len(parts) // 2], parts[len(parts) // 2 :]), inputs_TB


def exact_after(model: LSTMLanguageModel, seed: int, coming: ComingText) -> Tensor:
    """The exact future gradient after that window."""
    state, inputs_TB = a_window(seed)
    _, outgoing = model.outputs(model.embedding.detach()[model.rows_of(inputs_TB)], state)
    residual = partial(softmax_residual, model)
    steps = len(coming.inputs_CB)
    return adjoint_gradients(
        model, outgoing.detach(), coming, window=steps, boundaries=1, residual=residual
    )[0]


def measured(*multiples: float, cutoffs: tuple[int, ...] = ()) -> GaugeReading:
    """What it reads where so many times the exact gradient is injected, one window each."""
    model, gauge = a_model(layers=2, cutoffs=cutoffs), Gauge(CPU)
    coming = ComingText(*(twice(ids_CB, 1) for ids_CB in some_text(6, 2)))
    for seed, multiple in enumerate(multiples):
        injected_BS = multiple * exact_after(model, seed, coming)
        gauge.observe(model, *a_window(seed), injected_BS=injected_BS, coming=coming)
    return gauge.reading()


@pytest.mark.parametrize(("multiple", "cutoffs"), [(1.0, ()), (0.5, ()), (-2.0, ()), (0.5, (2, 4))])
def test_a_multiple_of_the_exact_gradient_has_its_slope(
    multiple: float, cutoffs: tuple[int, ...]
) -> None:
    reading = measured(*[multiple] * 8, cutoffs=cutoffs)
    assert reading.windows == 8
    # float64; one sum over the windows beside the other
    assert reading.share == pytest.approx(multiple, rel=1e-9)
    assert reading.beta == pytest.approx(1 / multiple, rel=1e-9)
    assert reading.cosine == pytest.approx(math.copysign(1, multiple), rel=1e-9)


def test_a_part_that_all_lanes_share_counts_for_nothing() -> None:
    """A reading of another lane's text has that part too."""
    model, coming = a_model(layers=2), some_text(6, LANES)
    exact_BS = exact_after(model, 0, coming)
    readings = []
    for shared in (0.0, 10.0):
        gauge = Gauge(CPU)
        same_S = shared * torch.ones_like(exact_BS[0])
        gauge.observe(model, *a_window(0), injected_BS=exact_BS / 2 + same_S, coming=coming)
        readings.append(gauge.means)
    # float64; ten is a thousand times as long as the gradients
    torch.testing.assert_close(readings[1], readings[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2])
def test_what_it_multiplies_is_the_gradient_that_injecting_adds(count: int) -> None:
    """⟨Jᵀŝ, Jᵀg⟩ across the halves, from the weights' own gradients of ⟨s, ŝ⟩; with two processes
    of their means."""
    model, coming = a_model(layers=2), some_text(6, LANES)
    windows = [a_window(rank) for rank in range(count)]
    exact = [exact_after(model, rank, coming) for rank in range(count)]
    injected = [torch.randn_like(exact_BS) for exact_BS in exact]
    barrier, table = threading.Barrier(count), {}
    ranks = [Thread(rank=r, count=count, barrier=barrier, table=table) for r in range(count)]
    gauges = [Gauge(CPU, ranks=each) for each in ranks]

    def observe(rank: int) -> None:
        gauges[rank].observe(model, *windows[rank], injected_BS=injected[rank], coming=coming)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(observe, range(count)))

    def effect(gradients: list[Tensor], lanes: slice) -> Tensor:
        objective = torch.zeros((), dtype=torch.float64)
        for (state, inputs_TB), gradient_BS in zip(windows, gradients, strict=True):
            _, outgoing = model.outputs(model.embedding.detach()[inputs_TB], state)
            own_BS = gradient_BS[lanes] - gradient_BS[lanes].mean(0)
            objective = objective + (outgoing.packed()[lanes] * own_BS).sum() / count
        effects = torch.autograd.grad(objective, list(model.layers.parameters()))
        return torch.cat([each.flatten() for each in effects])

    first, second = slice(2), slice(2, 4)
    both = effect(injected, first) @ effect(exact, second)
    both += effect(injected, second) @ effect(exact, first)
    right = (
        both / 2,
        effect(injected, first) @ effect(injected, second),
        effect(exact, first) @ effect(exact, second),
    )
    lengths = effect(exact, first).norm() * effect(exact, second).norm()
    for gauge in gauges:
        # float64: the same sums in another order
        torch.testing.assert_close(gauge.means, torch.stack(right) / lengths, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("lanes", "windows"), [(3, 0), (FEWEST_LANES, 1), (5, 1)])
def test_two_halves_of_two_lanes_are_the_fewest(lanes: int, windows: int) -> None:
    model, coming, gauge = a_model(), some_text(6, lanes), Gauge(CPU)
    inputs_TB = torch.randint(V, (T, lanes), generator=torch.Generator().manual_seed(0))
    state = model.start_state(lanes)
    injected_BS = torch.randn(lanes, model.shape.state_size, dtype=torch.float64)
    gauge.observe(model, state, inputs_TB, injected_BS=injected_BS, coming=coming)
    assert gauge.reading().windows == windows


@pytest.mark.parametrize("shared", [False, True])
def test_what_differs_from_lane_to_lane_counts_for_nothing(shared: bool) -> None:
    """⟨Jᵀŝ, Jᵀŝ⟩ of noise is zero within its error, unless both halves have the same noise."""
    model, coming, gauge = a_model(layers=2), some_text(6, LANES), Gauge(CPU)
    generator = torch.Generator().manual_seed(1)
    for seed in range(200):
        length = exact_after(model, seed, coming).norm()
        state, inputs_TB = a_window(seed)
        noise_BS = torch.randn(
            LANES, model.shape.state_size, generator=generator, dtype=torch.float64
        )
        if shared:
            noise_BS = twice(noise_BS[:2], 0)
        noise_BS *= length / noise_BS.norm()
        gauge.observe(model, state, inputs_TB, injected_BS=noise_BS, coming=coming)
    errors = ((gauge.squares - gauge.means.square()) / 199).sqrt()
    in_errors = float(gauge.means[1] / errors[1])
    assert in_errors > 5 if shared else abs(in_errors) < 4


def test_what_explains_nearly_all_can_move_the_weights_the_wrong_way() -> None:
    """Most of a state gradient differs from lane to lane and moves nothing in the mean: of two
    lanes with one history, it cancels here. A prediction that has all of that, and the rest with
    the wrong sign, explains nearly everything and is trusted. The gauge sees it."""
    model, gauge = a_model(layers=2), Gauge(CPU)
    trust = Trust(model.shape.state_size, device=CPU)
    generator = torch.Generator().manual_seed(0)
    pairs = torch.tensor([0, 0, 1, 1] * 2)  # two histories in each half
    coming = ComingText(*(twice(ids_CB, 1) for ids_CB in some_text(6, 2)))
    coming_of_pairs = ComingText(*(ids_CB[:, pairs] for ids_CB in coming))
    for seed in range(100):
        state, inputs_TB = a_window(seed)
        exact_BS = exact_after(model, seed, coming)[pairs]
        noise_2S = torch.randn(2, exact_BS.shape[1], generator=generator, dtype=torch.float64)
        noise_2S *= 10 * exact_BS.norm(dim=1).max() / noise_2S.norm(dim=1, keepdim=True)
        signs = torch.tensor([[1.0], [-1.0]] * 4, dtype=torch.float64)
        noise_BS = signs * noise_2S[pairs]
        predicted_BS = noise_BS - exact_BS
        trust.observe(predicted_BS, noise_BS + exact_BS)
        gauge.observe(
            model,
            state.lanes(pairs),
            inputs_TB[:, pairs],
            injected_BS=predicted_BS,
            coming=coming_of_pairs,
        )
    assert trust.explained(1.0) > 0.95
    assert float(trust.factor) > 0.5  # one standard error is taken off
    assert gauge.reading().share == pytest.approx(-1, rel=1e-9)  # float64


@pytest.mark.parametrize("dropout", [None, EVERY_DROPOUT])
def test_it_leaves_training_alone(dropout: DropoutRates | None) -> None:
    """Weights and random numbers are bitwise those of a run without it."""
    learners = [with_adjoint(dropout, exact=True) for _ in range(2)]
    learners[1].gauge = Gauge(CPU)
    after = []
    for learner in learners:
        torch.manual_seed(3)
        text = batcher()
        for step in range(3):
            window = text.at(step)._replace(ahead=text.ahead(step, 6))
            train_step(learner, window, INJECT, learning_rate=1e-2)
        after.append((weights(learner.model), torch.get_rng_state()))
    assert all_equal(after[0][0], after[1][0])
    assert torch.equal(after[0][1], after[1][1])
    assert learners[1].gauge.reading().windows == 3


def test_a_window_that_is_not_finite_counts_for_nothing() -> None:
    model, coming, gauge = a_model(), some_text(6, LANES), Gauge(CPU)
    state, inputs_TB = model.start_state(LANES), torch.zeros(T, LANES, dtype=torch.int64)
    injected_BS = torch.full((LANES, model.shape.state_size), math.nan, dtype=torch.float64)
    gauge.observe(model, state, inputs_TB, injected_BS=injected_BS, coming=coming)
    assert gauge.reading().windows == 0
    assert not gauge.means.any()


def test_it_goes_on_where_a_checkpoint_was() -> None:
    learner = with_adjoint(exact=True)
    learner.gauge = Gauge(CPU)
    text = batcher()
    window = text.at(0)._replace(ahead=text.ahead(0, 6))
    train_step(learner, window, INJECT, learning_rate=1e-2)
    other = with_adjoint(exact=True)
    other.gauge = Gauge(CPU)
    restore(other, capture(learner))
    assert other.gauge.reading() == learner.gauge.reading()
    assert other.gauge.reading().windows == 1


def test_a_checkpoint_of_processes_without_a_gauge_is_one_for_a_gauge() -> None:
    """Of one lane a process there are no two halves."""
    learner = with_adjoint()
    learner.gauge = Gauge(torch.device("cpu"))
    restore(learner, capture(learner) | {"gauge": None})
    assert learner.gauge.reading().windows == 0


def test_it_looks_at_what_follows_the_window() -> None:
    text = batcher()
    ahead, later = text.ahead(0, 2 * T), [text.at(step) for step in (1, 2)]
    assert torch.equal(ahead.inputs_CB, torch.cat([window.inputs_TB for window in later]))
    assert torch.equal(ahead.targets_CB, torch.cat([window.targets_TB for window in later]))


@pytest.mark.parametrize("probe_every", [2, 10, 25])
@pytest.mark.parametrize("stretch", [1, 2, 4])
def test_it_comes_regularly_and_to_every_place_of_a_stretch(probe_every: int, stretch: int) -> None:
    rule = DecisionRule(probe_every=probe_every, stretch=stretch, gauge_every=50)
    ids = torch.zeros(2, 1, dtype=torch.int64)
    window = Window(ids, ids, is_first=False, is_last=False)
    plan = StepPlan(1.0, Mode.SYNTHETIC, 0)
    steps = [step for step in range(20_000) if rule.decide(step, plan, window).gauge]
    assert all(rule.decide(step, plan, window).inject for step in steps)
    # As many as there are windows between probes.
    assert len(steps) == pytest.approx(400 * (1 - 1 / probe_every), rel=0.1)
    usable = {s % stretch for s in range(200) if rule.decide(s, plan, window).inject}
    assert {step % stretch for step in steps} == usable
    real = StepPlan(1.0, Mode.REAL, 0)
    assert not any(rule.decide(step, real, window).gauge for step in steps)


@pytest.mark.parametrize("epoch", [2, 10, 33, 971])
@pytest.mark.parametrize("stretch", [2, 3, 5, 10, 32])
@pytest.mark.parametrize("probe_every", [2, 10, 25])
def test_where_a_stretch_has_one_injection_it_is_that_which_is_measured(
    epoch: int, stretch: int, probe_every: int
) -> None:
    """Once in so many windows, even where epoch, stretch, probes and interval have common
    divisors."""
    rule = DecisionRule(
        probe_every=probe_every, stretch=stretch, gauge_every=200, injects_once=True
    )
    ids_N = np.zeros(epoch, dtype=np.uint16)
    text = Batcher(ids_N, batch=1, window=1, bos_id=0, stretch=stretch, lookahead=1)
    windows = [text.at(step) for step in range(epoch)]
    plan, steps = StepPlan(1.0, Mode.SYNTHETIC, 0), 20_000
    found, due = 0, 0.0
    for step in range(steps):
        window = windows[step % epoch]
        decision = rule.decide(step, plan, window)
        assert not decision.gauge or (window.coming is not None and decision.inject)
        found += decision.gauge
        due += decision.inject * window.stretch / 200
    assert 0.85 * due - 1 < found <= steps / 200  # by where the probes happen to fall


def test_short_windows_are_measured_less_often() -> None:
    """The exact gradient is of twenty tokens, whatever the window."""
    assert [gauge_every(window) for window in (2, 5, 35, 70)] == [550, 250, 100, 100]
    assert gauge_every(35, injects_once=True) == 200


def test_the_sentence_says_what_was_bought(tiny_config: Callable[..., Config]) -> None:
    learner = with_adjoint()
    status = learner.estimator.status()
    assert status is not None
    reading = GaugeReading(windows=40, beta=1.25, cosine=0.9, share=0.72, noise=0.1)

    def sentence(of: GaugeReading | None) -> str:
        return closing_sentence(
            tiny_config(),
            status._replace(probes=10),
            RunawayWatch(),
            windows_per_epoch=100,
            reading=of,
        )

    assert (
        "moved the weights 72 % as far as the exact gradient of 20 more tokens would"
        " (cosine 0.90, slope 1.25, 40 windows)"
    ) in sentence(reading)
    for epoch, one_in in ((100, 32), (9, 9)):  # a stretch ends with its epoch
        long = closing_sentence(
            tiny_config(train={"window": 20}),
            status._replace(probes=10),
            RunawayWatch(),
            windows_per_epoch=epoch,
            reading=reading,
        )
        assert f"was injected, at one window in {one_in}, moved the weights 72 % as far" in long
    for unclear in (reading._replace(noise=0.6), reading._replace(cosine=math.nan)):
        assert "not known: too few windows, or too noisy (40 windows)" in sentence(unclear)
    for nothing in (None, reading._replace(windows=0)):
        assert "weights" not in sentence(nothing)
