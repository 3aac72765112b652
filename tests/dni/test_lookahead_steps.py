"""The laws of the training step where the synthesizer reads ahead and is taught."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sglm.dni.boundary import Boundary
from sglm.dni.synthesizer import LookaheadSynthesizer, Prediction
from sglm.model.language_model import DropoutRates
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Batcher
from sglm.train.step import Learner, train_step
from tests.train.test_step import (
    REAL,
    SYNTHETIC,
    B,
    T,
    V,
    all_equal,
    make_learner,
    weights,
)

EPOCH, STRETCH = 7, 3  # windows: the last stretch of an epoch is a short one


def batcher(stretch: int = STRETCH) -> Batcher:
    """An epoch is seven windows and two tokens."""
    ids_N = np.random.default_rng(0).integers(V, size=B * (EPOCH * T + 2)).astype(np.uint16)
    return Batcher(ids_N, batch=B, window=T, eos_id=0, stretch=stretch, lookahead=5)


def lookahead_learner(
    net: LookaheadSynthesizer,
    dropout: DropoutRates | None = None,
    learning_rate: float = 1e-3,
    taught_every: int | None = None,
    noise: torch.Generator | None = None,
    lookahead: int = T + 1,
) -> Learner:
    """A learner whose synthesizer reads ahead."""
    boundary = Boundary(
        net.double(),
        learning_rate,
        factor=1.0,
        stretch=STRETCH,
        lookahead=lookahead,
        noise=noise,
        bootstrapped=taught_every is None,
    )
    learner = make_learner(boundary, dropout)
    boundary.token_features = learner.model.token_features
    learner.taught_every = taught_every
    return learner


def loud() -> LookaheadSynthesizer:
    """One that has something to say from the start."""
    torch.manual_seed(4)
    net = LookaheadSynthesizer(20, 10, 6)
    nn.init.normal_(net.heads.weight)
    return net


@pytest.mark.parametrize("taught_every", [None, 1, 2])
def test_a_silent_lookahead_is_plain_truncation_bitwise(taught_every: int | None) -> None:
    rates = DropoutRates(0.2, 0.2, 0.2, 0.2, 0.2)
    net = LookaheadSynthesizer(20, 10, 6)
    plain, augmented = make_learner(None, rates), lookahead_learner(net, rates, 0.0, taught_every)
    results = []
    for learner in (plain, augmented):
        torch.manual_seed(9)
        steps = range(2 * EPOCH)
        results.append([train_step(learner, batcher().at(k), SYNTHETIC, k).nll_nats for k in steps])
    assert all_equal(*results)
    assert all_equal(weights(plain.model), weights(augmented.model))


@pytest.mark.parametrize("taught_every", [None, 1])
def test_real_phases_are_plain_truncation_whatever_the_synthesizer_does(
    taught_every: int | None,
) -> None:
    """It reads ahead, is taught, and would inject noise; its net is as loud as it likes."""
    rates = DropoutRates(0.2, 0.2, 0.2, 0.2, 0.2)
    noise = torch.Generator().manual_seed(0)
    before = noise.get_state()
    plain, augmented = (
        make_learner(None, rates),
        lookahead_learner(loud(), rates, taught_every=taught_every, noise=noise),
    )
    for learner in (plain, augmented):
        torch.manual_seed(9)
        for step in range(2 * EPOCH):
            train_step(learner, batcher().at(step), REAL, step)
    assert all_equal(weights(plain.model), weights(augmented.model))
    assert torch.equal(noise.get_state(), before)
    for learner in (plain, augmented):
        for step in range(EPOCH):
            train_step(learner, batcher().at(step), SYNTHETIC, step)
    assert not all_equal(weights(plain.model), weights(augmented.model))


class ReadsOneStep(LookaheadSynthesizer):
    """Its summary of a boundary is the step that comes next; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(20, 10, 5)
        self.given: list[Tensor] = []

    def summarise(self, features_CKF: Tensor, starts: Tensor) -> Tensor:
        return features_CKF[starts]

    def forward(self, state_BS: Tensor, context: Tensor | None = None) -> Prediction:
        assert context is not None
        self.given.append(context)
        return super().forward(state_BS, context)


@pytest.mark.parametrize("lookahead", [T + 1, T])  # along the stretch, or from each boundary
def test_every_boundary_is_read_with_what_comes_after_it(lookahead: int) -> None:
    """After a window, and where it is measured and learned; in short stretches too, over epochs."""
    net = ReadsOneStep()
    learner, text = lookahead_learner(net, lookahead=lookahead), batcher()
    assert learner.boundary is not None
    stretch: list[Tensor] = []
    for step in range(1, 3 * EPOCH):  # of which some are probes
        window = text.at(step - 1)
        net.given.clear()
        train_step(learner, window, StepPlan(0.0, Mode.SYNTHETIC, 0), step)
        token_features = learner.model.token_features
        stretch.append(token_features(window.inputs_TB[0], window.targets_TB[0]))
        right = []
        if not window.is_last and step % learner.boundary.probe_every:  # something is injected
            following = text.at(step)
            right = [token_features(following.inputs_TB[0], following.targets_TB[0])]
        if window.is_last or len(stretch) == STRETCH:  # its lessons are learned together
            right.append(torch.cat(stretch))
            stretch.clear()
        assert all_equal(net.given, right)


def test_teaching_comes_every_so_many_stretches_with_the_states_that_lanes_will_carry() -> None:
    """For a model that does not move, the taught states are those that its windows begin with."""
    learner, taught, begun = lookahead_learner(loud(), taught_every=2), [], []
    assert learner.boundary is not None
    teach = learner.boundary.teach

    def spy(states_PBS: Tensor, gradients_PBS: Tensor) -> None:
        taught.append((step, states_PBS, gradients_PBS))
        teach(states_PBS, gradients_PBS)

    learner.boundary.teach = spy  # type: ignore[method-assign]
    for step in range(EPOCH):
        train_step(learner, batcher().at(step), StepPlan(0.0, Mode.REAL, 0), step)
        begun.append(learner.state.packed())  # with what the next window begins
    assert [step for step, _, _ in taught] == [0, 2 * STRETCH]
    (_, states_PBS, gradients_PBS), (_, last_PBS, _) = taught
    assert states_PBS.shape == gradients_PBS.shape == (STRETCH, B, 20)
    # float64: windows one by one, or with the text after them
    torch.testing.assert_close(states_PBS[1:], torch.stack(begun[:2]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_PBS[0], begun[5], rtol=1e-12, atol=1e-12)
    assert len(last_PBS) == 1  # the lanes end with that window


def test_gradients_that_are_not_finite_teach_nothing() -> None:
    learner = lookahead_learner(loud(), taught_every=1)
    boundary = learner.boundary
    assert boundary is not None
    train_step(learner, batcher().at(0), REAL, 0)
    with torch.no_grad():
        learner.model.softmax_bias[0] = float("inf")
    for step in (1, 2, 3):  # 3 begins a stretch
        train_step(learner, batcher().at(step), REAL, step)
    assert all(bool(torch.isfinite(p).all()) for p in boundary.synthesizer.parameters())
    assert bool(torch.isfinite(boundary.trust.norm))
