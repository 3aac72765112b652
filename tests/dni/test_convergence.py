"""What Czarnecki et al. (2017) prove of synthetic gradients, on networks cut between all layers.

Sec. 3: they take nothing from what a network can represent: where the true gradients vanish and the
synthesizer can say so, the whole system rests. Sec. 4: linear and deep linear networks converge,
with a linear synthesizer. Here also how fast: synthetic gradients that have been learned are the
true ones, so the error falls at the rate of true gradients.

Layer k writes h_k into the state, and layer k + 1 reads it one step later, so that every layer but
the last learns only from what crosses an estimator; what arrives at h_k contains what was injected
at h_{k+1}. The last layer is fixed and orthogonal, inputs have unit covariance, and the loss is
½‖y − M·x‖²: for one layer W, E[gradient] = W − W*, and a learning rate η leaves 1 − η of the error
at every step, (1 − η)² of the loss. Of two layers that are near orthogonal both move the product:
1 − 2η.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import LinearSynthesizer
from sglm.model.state import LSTMState
from tests.dni.test_learned import end_window, make

UNITS, LANES = 3, 64


class Chain:
    """Layers that are fed from behind with new inputs at every step.

    Args:
        depth: of the layers that learn.
        rate: their learning rate, η.
        smooth: a tanh after each of them; otherwise they are linear.
    """

    def __init__(self, depth: int, *, rate: float = 0.05, smooth: bool = False) -> None:
        torch.manual_seed(2)
        self.smooth = smooth
        self.last = torch.linalg.qr(torch.randn(UNITS, UNITS))[0]
        self.right = [torch.linalg.qr(torch.randn(UNITS, UNITS))[0] for _ in range(depth)]
        self.weights = [
            nn.Parameter(right + 0.15 * torch.randn(UNITS, UNITS)) for right in self.right
        ]
        self.optimizer = torch.optim.SGD(self.weights, lr=rate)
        empty = (torch.zeros(LANES, 0),)  # a state with hidden parts only
        self.state = LSTMState(tuple(torch.zeros(LANES, UNITS) for _ in range(depth)), empty)
        self.inputs = [torch.zeros(LANES, UNITS)] * depth  # the latest ones first

    def layer(self, below: Tensor, weight: Tensor) -> Tensor:
        above = below @ weight.t()
        return above.tanh() if self.smooth else above

    def loss(self, top: Tensor, inputs: Tensor) -> Tensor:
        """Summed over lanes; `top` is of the last layer that learns."""
        for weight in self.right:
            inputs = self.layer(inputs, weight)
        return 0.5 * ((top - inputs) @ self.last.t()).square().sum()

    def learn(self, nats: Tensor) -> float:
        self.optimizer.zero_grad()
        (nats / LANES).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return nats.item() / LANES

    def real_step(self) -> float:
        """All layers on one input, with the true gradient."""
        inputs = torch.randn(LANES, UNITS)
        top = inputs
        for weight in self.weights:
            top = self.layer(top, weight)
        return self.learn(self.loss(top, inputs))

    def decoupled_step(self, estimator: LearnedEstimator) -> float:
        """Every layer on another input; returns the loss without what was injected."""
        leaf = self.state.as_leaf()
        estimator.enter_window(leaf)
        newest = torch.randn(LANES, UNITS)
        pairs = zip((newest, *leaf.hidden[:-1]), self.weights, strict=True)
        outgoing = LSTMState(tuple(self.layer(*pair) for pair in pairs), leaf.cell)
        nats = self.loss(leaf.hidden[-1], self.inputs[-1])
        injected_BS = estimator.estimate(outgoing)
        self.learn(nats + (outgoing.packed() * injected_BS).sum())
        observed_BS = leaf.packed_gradient() * LANES
        end_window(estimator, observed_BS, outgoing, pure=False)
        self.state, self.inputs = outgoing.detach(), [newest, *self.inputs[:-1]]
        return nats.item() / LANES


def linear_estimator(depth: int, factor: float = 1.0) -> LearnedEstimator:
    """By plain gradient descent, so that it converges exactly, and far faster than the layers."""
    net = LinearSynthesizer(depth * UNITS)
    estimator = make(net, 1.0, factor, trust_bound=False)
    estimator.teaching.optimizer = torch.optim.SGD(net.parameters(), lr=0.3, fused=True)  # type: ignore[assignment]
    return estimator


def decoupled_losses(chain: Chain, steps: int, factor: float = 1.0) -> list[float]:
    estimator = linear_estimator(len(chain.weights), factor)
    losses = [chain.decoupled_step(estimator) for _ in range(steps)]
    return losses[len(chain.weights) :]  # before that the first input has not come through


def rate(losses: list[float]) -> float:
    """Of the error, per step: half the slope of the loss' logarithm, by least squares."""
    logs = torch.tensor(losses).log()
    steps = torch.arange(len(losses), dtype=torch.float32)
    steps -= steps.mean()
    return -0.5 * float((steps * logs).sum() / steps.square().sum())


@pytest.mark.parametrize("depth", [1, 2])
def test_linear_networks_converge_at_the_rate_of_true_gradients(depth: int) -> None:
    """And without synthetic gradients none of their weights moves."""
    slow = 0.01  # a synthesizer that lags behind says what was true, and larger, some steps ago
    real, synthetic = Chain(depth, rate=slow), Chain(depth, rate=slow)
    true = rate([real.real_step() for _ in range(150)])
    # The weights start 0.15 from orthogonal ones.
    assert true == pytest.approx(-math.log(1 - slow) * depth, rel=0.15)
    losses = decoupled_losses(synthetic, 180)[30:]  # the synthesizer has learned what there is
    # By that lag it is a little faster: by some steps (those of the way through, and about two of
    # the synthesizer's own rate) times the rate itself.
    assert true < rate(losses) < 1.2 * true
    still = Chain(depth)
    before = [weight.detach().clone() for weight in still.weights]
    decoupled_losses(still, 10, factor=0.0)
    assert all(map(torch.equal, before, still.weights))


def test_what_real_gradients_fit_exactly_synthetic_ones_do_too() -> None:
    """A network with a tanh, whose gradients are no linear function of its state: near the fit the
    linear synthesizer is as good as any."""
    real, synthetic = Chain(1, smooth=True), Chain(1, smooth=True)
    fitted = [real.real_step() for _ in range(400)]
    losses = decoupled_losses(synthetic, 400)
    assert fitted[-1] < fitted[0] / 100
    assert losses[-1] < losses[0] / 100
    assert sum(losses[-50:]) < 0.5 * sum(losses[-150:-100])  # and goes on falling


@pytest.mark.parametrize("depth", [1, 2])
def test_where_real_gradients_rest_the_whole_system_rests(depth: int) -> None:
    chain = Chain(depth, smooth=True)
    with torch.no_grad():
        for weight, right in zip(chain.weights, chain.right, strict=True):
            weight.copy_(right)
    assert decoupled_losses(chain, 20) == [0.0] * (20 - depth)
    assert all(map(torch.equal, chain.weights, chain.right))
    # A synthesizer that errs moves them, and unlearns that.
    erring = linear_estimator(depth)
    nn.init.normal_(erring.synthesizer.heads.weight, std=0.3)
    losses = [chain.decoupled_step(erring) for _ in range(200)]
    assert max(losses) > 1e-4
    assert max(losses[-20:]) < max(losses) / 20
