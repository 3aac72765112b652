"""What crosses a truncation boundary: bounds, probes, regression, auxiliary task, convergence."""

import pytest
import torch
from torch import Tensor, nn

from sglm.dni.boundary import Boundary
from sglm.dni.synthesizer import LinearSynthesizer, Prediction, Synthesizer
from sglm.model.state import LSTMState

B, H = 4, 3
S = 2 * H


class Says(Synthesizer):
    """Returns a given answer; its one weight has a gradient, as an optimizer expects."""

    def __init__(self, answer_BS: Tensor) -> None:
        super().__init__()
        self.answer_BS = answer_BS
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, state_BS: Tensor, memory: Tensor | None = None) -> Prediction:
        return Prediction(self.answer_BS + 0 * self.weight, None, None)


def some_state(seed: int = 0) -> LSTMState:
    generator = torch.Generator().manual_seed(seed)
    return LSTMState(
        (torch.randn(B, H, generator=generator),), (torch.randn(B, H, generator=generator),)
    )


def observe(boundary: Boundary, gradient_BS: Tensor) -> None:
    state = some_state()
    boundary.learn(boundary.read(state), gradient_BS, state, pure=True)


def test_surrogate_injects_factor_times_the_prediction_into_every_part_of_the_state() -> None:
    answer = torch.randn(B, S)
    boundary = Boundary(Says(answer), 1e-3, factor=0.7, trust_bound=False)
    leaf = some_state().as_leaf()
    boundary.surrogate(leaf).backward()
    torch.testing.assert_close(leaf.packed_gradient(), 0.7 * answer)


def test_nothing_is_trusted_before_a_pure_gradient_was_seen() -> None:
    boundary = Boundary(Says(torch.randn(B, S)), 1e-3, factor=1.0)
    assert torch.equal(boundary.synthesize(some_state()), torch.zeros(B, S))


def test_trust_bound_caps_each_lane_at_the_mean_observed_norm() -> None:
    answer = torch.randn(B, S)
    answer[0] *= 100
    answer[1] *= 1e-3
    boundary = Boundary(Says(answer), 1e-3, factor=1.0)
    observed = torch.randn(B, S)
    observe(boundary, observed)
    bound = observed.norm(dim=1).mean()
    bounded = boundary.synthesize(some_state())
    norms = bounded.norm(dim=1)
    assert (norms <= bound * (1 + 1e-6)).all()  # float32 rounding of a norm
    torch.testing.assert_close(norms[0], bound)
    torch.testing.assert_close(bounded[1], answer[1])  # short enough: left alone
    torch.testing.assert_close(bounded[0] / norms[0], answer[0] / answer[0].norm())


def test_the_bound_is_a_running_mean_of_pure_observations_only() -> None:
    boundary = Boundary(Says(torch.zeros(B, S)), 1e-3, factor=1.0)
    state = some_state()
    one = torch.ones(B, S) / S**0.5
    observe(boundary, one)
    observe(boundary, 3 * one)
    boundary.learn(boundary.read(state), 100 * one, state, pure=False)
    assert boundary.observed_norm_mean.item() == pytest.approx(2.0)


def test_agreement_of_known_predictions() -> None:
    observed = torch.randn(B, S)
    state = some_state()
    for answer, cosine, relative_mse, norm_ratio in [
        (observed, 1.0, 0.0, 1.0),
        (-2 * observed, -1.0, 9.0, 2.0),
        (torch.zeros(B, S), 0.0, 1.0, 0.0),
    ]:
        boundary = Boundary(Says(answer), 1e-3, factor=1.0)
        found = boundary.learn(boundary.read(state), observed, state, pure=True)
        assert found is not None
        assert found.cosine.item() == pytest.approx(cosine, abs=1e-6)
        assert found.relative_mse.item() == pytest.approx(relative_mse, abs=1e-6)
        assert found.norm_ratio.item() == pytest.approx(norm_ratio, abs=1e-6)


def test_probes_come_regularly() -> None:
    boundary = Boundary(Says(torch.zeros(B, S)), 1e-3, factor=1.0, probe_every=10)
    assert [step for step in range(40) if boundary.is_probe(step)] == [0, 10, 20, 30]


def test_regression_learns_a_linear_gradient() -> None:
    torch.manual_seed(0)
    truth = torch.randn(S, S)
    boundary = Boundary(LinearSynthesizer(S), 1e-2, factor=1.0)
    first = last = torch.tensor(0.0)
    for step in range(1500):
        state = some_state(step)
        found = boundary.learn(boundary.read(state), state.packed() @ truth, state, pure=True)
        assert found is not None
        first, last = (found.relative_mse if step == 0 else first), found.relative_mse
    assert first.item() == pytest.approx(1.0)  # predicting zero
    assert last.item() < 1e-3  # a linear map is learned exactly, up to Adam's constant step


def test_auxiliary_head_learns_what_the_main_head_says_one_window_later() -> None:
    """On a state that stands still both heads end at the same prediction."""
    torch.manual_seed(0)
    boundary = Boundary(LinearSynthesizer(S, auxiliary=True), 1e-2, factor=1.0)
    state, observed = some_state(), torch.randn(B, S)
    for _ in range(1500):
        prediction = boundary.read(state)
        boundary.learn(prediction, observed, state, pure=True)
    assert prediction.next_gradient_BS is not None
    torch.testing.assert_close(prediction.gradient_BS, observed, rtol=0, atol=1e-2)
    torch.testing.assert_close(prediction.next_gradient_BS, observed, rtol=0, atol=1e-2)


def decoupled_linear_losses(factor: float) -> list[float]:
    """Squared errors of a two-layer linear network cut in the middle by a boundary.

    One step writes h = W·x into the state, the next one reads y = C·h, and the loss is ½‖y − M·x‖²
    for the x of the step before: W learns only from what crosses the boundary. Everything is
    linear or quadratic, as in Czarnecki et al. 2017, sec. 4.
    """
    torch.manual_seed(1)
    units, lanes = 4, 16
    # W starts, and should end, invertible: a state that hides x cannot tell what to do with it.
    W = nn.Parameter(0.5 * torch.eye(units))
    C = torch.linalg.qr(torch.randn(units, units))[0]
    M = C @ (torch.eye(units) + 0.2 * torch.randn(units, units))
    optimizer = torch.optim.SGD([W], lr=0.02)
    boundary = Boundary(LinearSynthesizer(units), 3e-3, factor, trust_bound=False)
    empty = torch.zeros(lanes, 0)  # a state with hidden parts only
    state, before = LSTMState((torch.zeros(lanes, units),), (empty,)), torch.zeros(lanes, units)
    losses = []
    for _ in range(3000):
        leaf = state.as_leaf()
        prediction = boundary.read(leaf)
        x = torch.randn(lanes, units)
        outgoing = LSTMState((x @ W.t(),), (empty,))
        loss = 0.5 * (leaf.hidden[0] @ C.t() - before @ M.t()).square().sum()
        optimizer.zero_grad()
        ((loss + boundary.surrogate(outgoing)) / lanes).backward()
        boundary.learn(prediction, leaf.packed_gradient() * lanes, outgoing, pure=False)
        optimizer.step()
        state, before = outgoing.detach(), x
        losses.append(loss.item() / lanes)
    return losses


def test_linear_network_quadratic_loss_linear_synthesizer_converges() -> None:
    """To the optimum, which is zero; without synthetic gradients W never moves."""
    with_it, without = decoupled_linear_losses(1.0), decoupled_linear_losses(0.0)
    assert max(with_it[-100:]) < 1e-3 * max(with_it[1:100])
    # The same data and the same W throughout: only the samples of x differ from step to step.
    assert sum(without[-1000:]) == pytest.approx(sum(without[1:1001]), rel=0.1)
