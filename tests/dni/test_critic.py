"""The critic: it learns the value of a state, and injects that value's derivative."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sglm.dni import critic as critic_module
from sglm.dni.critic import Critic, CriticEstimator, CriticLessons, Transition, lane_nats
from sglm.dni.estimator import FeatureGradient, StretchBeginning
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.softmax_loss import IGNORED
from sglm.model.state import LSTMState
from sglm.runtime.ranks import ALONE, Ranks
from sglm.text.batcher import ComingText
from sglm.train.learner import Learner
from sglm.train.step import train_step
from sglm.train.window_pass import WindowPass
from tests.dni.exact import future_gradients
from tests.dni.test_adjoint import EVERY_DROPOUT, PROBE, a_model, some_text
from tests.dni.test_estimator import INJECT, PLAIN, batcher
from tests.dni.test_learned import Thread
from tests.train.test_step import B, T, V, all_equal, make_learner, weights


def with_critic(dtype: str = "fp64", **named: Any) -> Learner:
    learner = make_learner(None, EVERY_DROPOUT, dtype)
    model = learner.model
    torch.manual_seed(1)
    critic = Critic(model.shape.state_size, 8, discount=0.5)
    nn.init.normal_(critic.last.weight)
    learner.estimator = CriticEstimator(model, critic=critic, **named)
    learner.window_pass = WindowPass(model, keeps_features=True)
    return learner


def estimator_of(learner: Learner) -> CriticEstimator:
    assert isinstance(learner.estimator, CriticEstimator)
    return learner.estimator


def test_it_converges_to_the_value_of_a_known_quadratic_loss() -> None:
    """s' = a·s and L = s·A·s + c: V(s) = s·A·s/(1 − γa²) + c/(1 − γ)."""
    discount, shrink, constant = 0.5, 0.8, 30.0
    A = torch.tensor([[1.0, 0.5], [0.5, -1.0]])
    torch.manual_seed(0)
    critic = Critic(2, 32, discount=discount)
    lessons = CriticLessons(critic, learning_rate=1e-2)
    for step in range(800):
        lessons.optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 800)
        state_BS = 2 * torch.rand(64, 2) - 1
        nats_B = ((state_BS @ A) * state_BS).sum(1) + constant
        lessons.learn(Transition(state_BS, shrink * state_BS, nats_B))
    state_BS = 1.6 * torch.rand(200, 2) - 0.8  # within what it has seen
    scale = 1 / (1 - discount * shrink**2)
    right_B = scale * ((state_BS @ A) * state_BS).sum(1) + constant / (1 - discount)
    with torch.no_grad():
        error_B = critic(state_BS) - right_B
    # Of a small net, trained for a second: 1 % of the variance, and 3 % of the derivative's.
    assert float(error_B.square().mean() / right_B.var()) < 0.01
    leaf_BS = state_BS.requires_grad_()
    (found_BS,) = torch.autograd.grad(critic(leaf_BS).sum(), leaf_BS)
    right_BS = 2 * scale * state_BS.detach() @ A
    assert float((found_BS - right_BS).square().sum() / right_BS.square().sum()) < 0.03


def test_what_is_injected_is_the_derivative_of_what_is_predicted() -> None:
    """By central differences, in float64; bound and factor aside."""
    learner = with_critic(factor=0.7, trust_bound=False)
    estimator = estimator_of(learner)
    train_step(learner, batcher(stretch=1).at(0), PROBE, learning_rate=0.0)  # units, a mean
    assert float(estimator.trust.unit) != 1
    state = learner.state
    injected_BS = estimator.estimate(state)
    packed_BS, step = state.packed(), 1e-5
    for coordinate in range(0, packed_BS.shape[1], 5):
        nudge_S = step * torch.eye(packed_BS.shape[1], dtype=torch.float64)[coordinate]
        ends = [estimator.values(packed_BS + sign * nudge_S) for sign in (1, -1)]
        slope_B = (ends[0] - ends[1]) / (2 * step)
        # Differences of second order, of values around 10
        torch.testing.assert_close(injected_BS[:, coordinate], 0.7 * slope_B, rtol=1e-6, atol=1e-8)
    assert injected_BS.norm() > 0


class PerfectCritic(nn.Module):
    """Reads the future: the nats of the coming text as a function of the packed state."""

    def __init__(self, model: LSTMLanguageModel, coming: ComingText) -> None:
        super().__init__()
        self.one = [model]  # no child
        self.coming = coming

    def forward(self, state_BS: Tensor) -> Tensor:
        (model,) = self.one
        hidden, cell = state_BS.chunk(2, dim=1)
        widths = model.shape.widths
        state = LSTMState(hidden.split(widths, dim=1), cell.split(widths, dim=1))
        features_TBH, _ = model.features(self.coming.inputs_CB, state)
        return model.nll(features_TBH, self.coming.targets_CB, reduction="none").sum(0)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_perfect_critic_injects_the_exact_gradient(layers: int) -> None:
    model, coming = a_model(layers=layers), some_text(2 * T)
    critic = Critic(model.shape.state_size, discount=1 / 2)
    estimator = CriticEstimator(model, critic=critic, factor=1.0, trust_bound=False)
    estimator.critic = PerfectCritic(model, coming)  # type: ignore[assignment]
    state = model.start_state(B)
    _, (right_BS,) = future_gradients(StretchBeginning(model, state, coming, T), 1)
    # float64: the same sums in another order
    torch.testing.assert_close(estimator.estimate(state), right_BS, rtol=1e-10, atol=1e-12)
    assert right_BS.abs().max() > 1e-2


def test_the_derivative_of_a_value_is_not_the_gradient_of_the_loss() -> None:
    """Where the text is easy after some states, their value is low, and moving towards them makes
    no text easier: what a critic learns from a model that predicts perfectly is not zero, while
    the state gradient is, on average."""
    torch.manual_seed(0)
    critic = Critic(2, 8, discount=0.0)
    lessons = CriticLessons(critic, learning_rate=1e-2)
    for _ in range(300):
        state_BS = torch.randn(64, 2)
        # A coin whose odds the first coordinate tells, as a model that knows them is surprised.
        odds_B = state_BS[:, 0].sigmoid()
        heads_B = torch.rand(64) < odds_B
        nats_B = -torch.where(heads_B, odds_B, 1 - odds_B).log()
        lessons.learn(Transition(state_BS, state_BS, nats_B))
    ahead_BS = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    (slope_BS,) = torch.autograd.grad(critic(ahead_BS).sum(), ahead_BS)
    # Of the entropy: ∓0.2 there, measured from noise
    assert float(slope_BS[0, 0]) < -0.05
    assert float(slope_BS[1, 0]) > 0.05


def test_it_learns_from_each_lanes_own_nats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout included, a few tokens at a time, targets left out; in sum they are the loss."""
    monkeypatch.setattr(critic_module, "chunk_rows", lambda vocab_size, device_type: 2 * B)
    learner, text = with_critic(), batcher(stretch=1)
    window = text.at(0)
    window.targets_TB[1, 0] = IGNORED
    seen: list[Transition] = []
    monkeypatch.setattr(estimator_of(learner).lessons, "learn", seen.append)
    before = learner.model.start_state(B).packed()
    result = train_step(learner, window, PROBE, learning_rate=0.0)
    (transition,) = seen
    torch.testing.assert_close(transition.nats_B.sum(), result.nll_nats)
    assert transition.nats_B.shape == (B,)
    assert len(set(transition.nats_B.tolist())) == B
    assert torch.equal(transition.state_BS, before)
    assert torch.equal(transition.next_BS, learner.state.packed())


def test_lanes_are_told_apart() -> None:
    model, text = a_model(), some_text(T)
    features_TBH, _ = model.features(text.inputs_CB, model.start_state(B))
    found_B = lane_nats(
        model, FeatureGradient(features_TBH.detach(), features_TBH, text.targets_CB)
    )
    right_BV = model.logits(features_TBH).log_softmax(-1)
    right_B = -right_BV.gather(2, text.targets_CB[..., None])[..., 0].sum(0)
    torch.testing.assert_close(found_B, right_B)


def test_a_step_that_is_not_finite_teaches_nothing() -> None:
    learner, text = with_critic(), batcher(stretch=1)
    train_step(learner, text.at(0), PLAIN, learning_rate=1e-2)
    critic = estimator_of(learner).critic
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    with torch.no_grad():
        learner.model.softmax_bias[0] = float("nan")
    assert not bool(train_step(learner, text.at(1), PROBE, learning_rate=1e-2).taken)
    after = critic.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert estimator_of(learner).status().probes == 0
    assert estimator_of(learner).status().is_finite


def test_with_loss_scaling_it_learns_in_nats() -> None:
    """fp16: eleven binary digits are left of the features."""
    means = []
    for dtype in ("fp16", "fp32"):
        learner = with_critic(dtype)
        torch.manual_seed(0)
        train_step(learner, batcher(stretch=1).at(0), INJECT, learning_rate=0.0)
        means.append(float(estimator_of(learner).critic.mean))
    assert means[0] == pytest.approx(means[1], rel=2e-3)
    # Untrained: every one of V tokens costs about log V.
    assert means[1] == pytest.approx(T * torch.tensor(float(V)).log().item(), rel=0.2)


def test_two_ranks_learn_as_one() -> None:
    torch.manual_seed(0)
    state_BS, next_BS, nats_B = torch.randn(4, 3), torch.randn(4, 3), 5 + torch.randn(4)
    first, barrier = Thread(rank=0, count=2), threading.Barrier(2)
    table: dict[int, list[Tensor]] = {}
    ranks = [replace(first, rank=rank, barrier=barrier, table=table) for rank in range(2)]
    start = Critic(3, 4, discount=0.5)
    nn.init.ones_(start.last.weight)

    def learned(ranks: Ranks) -> list[Tensor]:
        critic = Critic(3, 4, discount=0.5)
        critic.load_state_dict(start.state_dict())
        lessons = CriticLessons(critic, learning_rate=1e-2, ranks=ranks)
        lessons.learn(Transition(*map(ranks.own, (state_BS, next_BS, nats_B))))
        gradients = [p.grad for p in critic.parameters() if p.grad is not None]
        return [*gradients, critic.mean, critic.unit]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(learned, ranks)
    alone = learned(ALONE)
    assert len(alone) == len(weights(start)) + 2
    for mine, theirs, right in zip(one, other, alone, strict=True):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(mine, right)  # float32: the lanes are summed in another order


def test_nothing_is_learned_from_the_first_window() -> None:
    """Its mean is its own: what is left is rounding, of which Adam would make a whole step."""
    torch.manual_seed(0)
    critic = Critic(3, 4, discount=0.5)
    lessons = CriticLessons(critic, learning_rate=1e-2)
    before = weights(critic)
    lessons.learn(Transition(torch.zeros(4, 3), torch.randn(4, 3), 5 + torch.randn(4)))
    assert all_equal(weights(critic), before)
    assert critic.windows == 1
    lessons.learn(Transition(torch.randn(4, 3), torch.randn(4, 3), 5 + torch.randn(4)))
    assert not all_equal(weights(critic), before)
