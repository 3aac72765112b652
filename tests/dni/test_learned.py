"""The learned estimator: bounds, probes, regression, auxiliary task, convergence."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sglm.dni.estimator import Observation
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import LinearSynthesizer, Prediction, Synthesizer, make_synthesizer
from sglm.dni.teaching import Lesson
from sglm.dni.trust import Agreement
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks

B, H = 4, 3
S = 2 * H


class Constant(Synthesizer):
    """Predicts a given gradient; its one weight has a gradient, as an optimizer expects."""

    def __init__(self, given_BS: Tensor) -> None:
        super().__init__(given_BS.shape[1])
        self.given_BS = given_BS
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        return Prediction(self.given_BS + 0 * self.weight, None, None)


def some_state(seed: int = 0) -> LSTMState:
    generator = torch.Generator().manual_seed(seed)
    return LSTMState(
        (torch.randn(B, H, generator=generator),), (torch.randn(B, H, generator=generator),)
    )


def make(
    synthesizer: Synthesizer,
    learning_rate: float = 1e-3,
    factor: float | None = 1.0,
    **settings: Any,
) -> LearnedEstimator:
    return LearnedEstimator(synthesizer, learning_rate=learning_rate, factor=factor, **settings)


def observe(
    estimator: LearnedEstimator,
    gradient_BS: Tensor,
    state: LSTMState | None = None,
    *,
    outgoing: LSTMState | None = None,
    pure: bool = True,
    probe: bool | None = None,
) -> Agreement | None:
    """One window whose backward pass left `gradient_BS` at its incoming state; a pure one is a
    probe, unless told otherwise."""
    state = state or some_state()
    estimator.enter_window(state)
    return end_window(estimator, gradient_BS, outgoing or state, pure=pure, probe=probe)


def end_window(
    estimator: LearnedEstimator,
    gradient_BS: Tensor,
    outgoing: LSTMState,
    *,
    pure: bool = True,
    probe: bool | None = None,
) -> Agreement | None:
    """The window that was entered ends."""
    return estimator.end_window(
        Observation(
            gradient_BS=gradient_BS,
            outgoing=outgoing,
            injected=not pure,
            probe=pure if probe is None else probe,
        )
    )


def predicted(estimator: LearnedEstimator, state: LSTMState) -> Tensor:
    """What a synthesizer that reads the state alone predicts there, in nats."""
    with torch.no_grad():
        prediction: Prediction = estimator.synthesizer(state.packed())
        return prediction.gradient_BS * estimator.trust.unit


def test_the_factor_times_the_prediction_is_injected_into_every_part_of_the_state() -> None:
    answer = torch.randn(B, S)
    estimator = make(Constant(answer), 1e-3, factor=0.7, trust_bound=False)
    state = some_state()
    injected_BS = estimator.estimate(state)
    torch.testing.assert_close(injected_BS, 0.7 * answer)
    hidden_BH, cell_BH = state.parts_of(injected_BS)
    torch.testing.assert_close(hidden_BH, 0.7 * answer[:, :H])
    torch.testing.assert_close(cell_BH, 0.7 * answer[:, H:])


def test_nothing_is_trusted_before_a_pure_gradient_was_seen() -> None:
    estimator = make(Constant(torch.randn(B, S)), 1e-3, factor=1.0)
    assert torch.equal(estimator.estimate(some_state()), torch.zeros(B, S))


def test_trust_bound_cuts_each_lane_to_one_multiple_of_the_mean_observed_length() -> None:
    """Longer ones are cut to that one length and keep their direction; shorter are left alone."""
    answer = torch.randn(B, S)
    answer[:2] *= torch.tensor([[1e3], [2e3]])
    answer[2:] *= 1e-3
    multiples = []
    for scale in (1.0, 50.0):
        observed = scale * torch.randn(B, S)
        free = make(Constant(answer), 1e-3, factor=1.0, trust_bound=False)
        bounded = make(Constant(answer), 1e-3, factor=1.0)
        for estimator in (free, bounded):
            observe(estimator, observed)
        whole, cut = free.estimate(some_state()), bounded.estimate(some_state())
        torch.testing.assert_close(cut[2:], whole[2:])
        directions = [each[:2] / each[:2].norm(dim=1, keepdim=True) for each in (cut, whole)]
        torch.testing.assert_close(*directions)
        multiples += (cut[:2].norm(dim=1) / observed.norm(dim=1).mean()).tolist()
    assert multiples == pytest.approx([multiples[0]] * 4, rel=1e-5)  # float32
    assert multiples[0] >= 1


def test_the_bound_is_a_running_mean_of_pure_observations_only() -> None:
    """One that is not finite counts for nothing."""
    estimator = make(LinearSynthesizer(S), 1e-3, factor=1.0)
    one = torch.ones(B, S) / S**0.5
    observe(estimator, one)
    observe(estimator, 3 * one)
    observe(estimator, 100 * one, pure=False)
    observe(estimator, float("nan") * one)
    assert estimator.trust.norm.item() == pytest.approx(2.0)
    assert estimator.trust.count == 2


def test_agreement_of_known_predictions() -> None:
    observed = torch.randn(B, S)
    for answer, cosine, relative_mse, norm_ratio in [
        (observed, 1.0, 0.0, 1.0),
        (-2 * observed, -1.0, 9.0, 2.0),
        (torch.zeros(B, S), 0.0, 1.0, 0.0),
    ]:
        estimator = make(Constant(answer), 1e-3, factor=1.0)
        agreement = observe(estimator, observed)
        assert agreement is not None
        assert agreement.cosine.item() == pytest.approx(cosine, abs=1e-6)
        assert agreement.relative_mse.item() == pytest.approx(relative_mse, rel=1e-6, abs=1e-6)
        assert agreement.norm_ratio.item() == pytest.approx(norm_ratio, abs=1e-6)


def test_regression_learns_a_linear_gradient() -> None:
    torch.manual_seed(0)
    truth = torch.randn(S, S)
    estimator = make(LinearSynthesizer(S), 1e-2, factor=1.0)
    first = last = torch.tensor(0.0)
    for step in range(1500):
        state = some_state(step)
        agreement = observe(estimator, state.packed() @ truth, state)
        assert agreement is not None
        first, last = (agreement.relative_mse if step == 0 else first), agreement.relative_mse
    assert first.item() == pytest.approx(1.0)  # predicting zero
    assert last.item() < 1e-3  # a linear map is learned exactly, up to Adam's constant step


def test_learning_does_not_depend_on_how_large_gradients_are() -> None:
    """A power of two, so that no digit is rounded differently: 2¹⁰ times the truth is learned as
    2¹⁰ times the same prediction, step by step."""
    truth, scale = torch.randn(S, S), 2.0**10
    predictions = []
    for each in (truth, scale * truth):
        estimator = make(LinearSynthesizer(S), 1e-2, factor=1.0)
        for step in range(20):
            observe(estimator, some_state(step).packed() @ each, some_state(step))
        predictions.append(predicted(estimator, some_state(20)))
    assert predictions[0].norm() > 0
    assert torch.equal(predictions[1], scale * predictions[0])


def test_what_it_is_trusted_for_was_held_out() -> None:
    """A net that learns each lesson of noise by heart predicts none of the next: α is zero."""
    estimator = make(LinearSynthesizer(S), 1e-3, factor=None)
    weights = estimator.synthesizer.parameters()
    estimator.teaching.optimizer = torch.optim.SGD(weights, lr=0.1, fused=True)  # type: ignore[assignment]
    torch.manual_seed(0)
    known = 0
    for step in range(200):
        state, noise = some_state(step), torch.randn(B, S)
        observe(estimator, noise, state)
        known += (predicted(estimator, state) * noise).sum().item() > 0
    assert known > 150  # it has learned what it just observed
    assert estimator.trust.explained(1.0) < 0
    assert estimator.injection.factor < 0.05


@pytest.mark.parametrize("kind", ["mlp", "recurrent", "linear"])
def test_what_is_injected_after_a_window_is_what_is_learned_from_before_the_next(
    kind: str,
) -> None:
    """The same estimator seen from its two sides: same state, same memory, same word."""
    torch.manual_seed(0)
    net = make_synthesizer(kind, S, hidden=6)
    nn.init.normal_(net.heads.weight)  # type: ignore[union-attr, arg-type]
    estimator = make(net, 0.0, trust_bound=False)
    injected, learned = [], []

    def note(net: Synthesizer, given: Any, prediction: Prediction) -> None:
        if torch.is_grad_enabled():
            learned.append(prediction.gradient_BS.detach() * estimator.trust.unit)

    net.register_forward_hook(note)
    for step in range(4):
        estimator.enter_window(some_state(step))
        injected.append(estimator.estimate(some_state(step + 1)))
        end_window(estimator, torch.randn(B, S), some_state(step + 1), pure=False)
    assert injected[0].norm() > 0
    for before, after in zip(injected[:-1], learned[1:], strict=True):
        torch.testing.assert_close(before, after)  # float32: one product or two


def test_auxiliary_head_learns_what_the_main_head_says_one_window_later() -> None:
    """On a state that stands still both heads end at the same prediction."""
    torch.manual_seed(0)
    estimator = make(LinearSynthesizer(S, auxiliary=True), 1e-2, factor=1.0)
    state, observed = some_state(), torch.randn(B, S)
    for _ in range(1500):
        observe(estimator, observed, state)
    torch.testing.assert_close(predicted(estimator, state), observed, rtol=0, atol=1e-2)
    prediction = estimator.synthesizer(state.packed())
    assert prediction.next_gradient_BS is not None
    torch.testing.assert_close(
        prediction.next_gradient_BS, prediction.gradient_BS, rtol=0, atol=1e-2
    )


def test_a_synthesizer_that_has_diverged_injects_and_learns_nothing() -> None:
    estimator = make(LinearSynthesizer(S), 1e-3, factor=1.0)
    observe(estimator, torch.randn(B, S))
    with torch.no_grad():
        estimator.synthesizer.heads.bias.fill_(float("nan"))  # type: ignore[union-attr, operator]
    weights = estimator.synthesizer.state_dict()["heads.weight"].clone()
    assert torch.equal(estimator.estimate(some_state()), torch.zeros(B, S))
    observe(estimator, torch.randn(B, S))
    assert torch.equal(estimator.synthesizer.state_dict()["heads.weight"], weights)
    assert bool(torch.isfinite(estimator.trust.norm))


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_lane_that_is_not_finite_teaches_nothing_and_the_others_do(
    auxiliary: bool, poison: float
) -> None:
    """The same as from the others alone, also where the bad lane's next state is as bad."""
    incoming, outgoing, observed_BS = some_state(0), some_state(1), torch.randn(B, S)
    outgoing.cell[0][0] = observed_BS[0, 1] = poison

    def taught(lanes: list[int]) -> Tensor:
        estimator = make(LinearSynthesizer(S, auxiliary=auxiliary), 1e-2, factor=1.0)
        before, after = (state.lanes(torch.tensor(lanes)) for state in (incoming, outgoing))
        observe(estimator, observed_BS[lanes], before, outgoing=after, pure=False)
        return estimator.synthesizer.state_dict()["heads.weight"]

    learned, expected = taught(list(range(B))), taught(list(range(1, B)))
    assert expected.norm() > 0
    torch.testing.assert_close(learned, expected)


@dataclass(frozen=True)
class Thread(Ranks):
    """A rank that is a thread, so that averages need no network."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    table: dict[int, list[Tensor]] = field(default_factory=dict)

    def average(self, values: Sequence[Tensor]) -> None:
        self.table[self.rank] = [value.detach().clone() for value in values]
        self.barrier.wait(timeout=60)
        means = [torch.stack(each).mean(dim=0) for each in zip(*self.table.values(), strict=True)]
        self.barrier.wait(timeout=60)  # before the table is written to again
        for value, mean in zip(values, means, strict=True):
            value.detach().copy_(mean)


@pytest.mark.parametrize("bad", [[], [0], [0, 1]])
def test_lanes_of_one_rank_that_are_not_finite_count_on_no_rank(bad: list[int]) -> None:
    """Two ranks learn and measure as one process with all lanes does. (Gradients are compared:
    Adam's first step is the same whatever their length.)"""
    torch.manual_seed(0)
    state, observed_BS = some_state(), torch.randn(B, S)
    observed_BS[bad] = float("nan")
    first, barrier, table = Thread(rank=0, count=2), threading.Barrier(2), {}
    ranks = [replace(first, rank=rank, barrier=barrier, table=table) for rank in range(2)]

    def learned(ranks: Ranks) -> tuple[Tensor, float]:
        net = LinearSynthesizer(S)
        estimator = make(net, 1e-2, factor=1.0, ranks=ranks)
        own = LSTMState(*(tuple(map(ranks.own, parts)) for parts in state))
        estimator.trust.observe(torch.ones(B // ranks.count, S), torch.ones(B // ranks.count, S))
        agreement = observe(estimator, ranks.own(observed_BS), own)
        assert agreement is not None
        assert net.heads.weight.grad is not None
        return net.heads.weight.grad, agreement.relative_mse.item()

    with ThreadPoolExecutor(2) as pool:
        (one, mse), (other, other_mse) = pool.map(learned, ranks)
    alone, alone_mse = learned(ALONE)
    assert alone.norm() > 0
    assert torch.equal(one, other)
    # float32: the lanes are summed in another order
    torch.testing.assert_close(one, alone)
    assert [mse, other_mse] == pytest.approx([alone_mse] * 2, rel=1e-5, nan_ok=True)


def test_the_auxiliary_target_is_what_it_said_whatever_unit_gradients_turn_out_to_have() -> None:
    """The unit moves with every probe; a target of its own word must not move with it."""
    gradients = []
    for size in (1.0, 1e3):  # of the gradient that comes with the probe
        torch.manual_seed(0)
        net = LinearSynthesizer(S, auxiliary=True)
        nn.init.normal_(net.heads.weight)
        estimator = make(net, 1e-3, factor=1.0)
        observe(estimator, size * torch.ones(B, S))
        assert net.heads.weight.grad is not None
        gradients.append(net.heads.weight.grad[S:])  # of the head that foresees
    assert gradients[0].norm() > 0
    assert torch.equal(*gradients)


def test_what_is_believed_is_measured_of_what_would_be_injected() -> None:
    """Of a prediction that is far too long in the right direction, the bound lets through four
    times the truth: the factor makes up for these, and not for the whole length."""
    truth_BS = torch.ones(B, S)
    estimator = make(Constant(1e6 * truth_BS), factor=None)
    for _ in range(100):
        observe(estimator, truth_BS)
    # 1 / 4, less a standard error: nothing was let through before the first observation.
    assert 0.2 < estimator.injection.factor.item() < 0.25


def test_a_gradient_that_is_not_finite_leaves_the_echo_as_it_was() -> None:
    """As NaN it would never be above a threshold again, and no runaway be noticed."""
    estimator = make(Constant(torch.ones(B, S)))
    observe(estimator, torch.ones(B, S), pure=False)
    before = estimator.teaching.echo.clone()
    observe(estimator, torch.full((B, S), float("nan")), pure=False)
    assert torch.equal(estimator.teaching.echo, before)
    assert before > 0


def test_the_auxiliary_target_is_what_is_injected_after_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a recurrent synthesizer, with what it remembers there."""
    torch.manual_seed(0)
    net = make_synthesizer("recurrent", S, hidden=6, auxiliary=True)
    nn.init.normal_(net.heads.weight)  # type: ignore[union-attr, arg-type]
    estimator = make(net, trust_bound=False)
    lessons: list[Lesson] = []
    monkeypatch.setattr(estimator.teaching, "learn", lessons.append)
    for step in range(3):
        estimator.enter_window(some_state(step))
        injected_BS = estimator.estimate(some_state(step + 1))  # in nats, as the unit is 1
        end_window(estimator, torch.randn(B, S), some_state(step + 1), pure=False)
        assert lessons[-1].next_BS is not None
        torch.testing.assert_close(lessons[-1].next_BS, injected_BS)
