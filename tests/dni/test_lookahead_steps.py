"""The laws of the training step where the synthesizer reads ahead and is taught."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import LookaheadSynthesizer, Prediction
from sglm.model.language_model import DropoutRates
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Batcher
from sglm.train.learner import Learner
from tests.train.test_step import (
    REAL,
    SYNTHETIC,
    B,
    T,
    V,
    all_equal,
    learned,
    make_learner,
    take_step,
    weights,
)

EPOCH, STRETCH = 7, 3  # windows: the last stretch of an epoch is a short one


def batcher(stretch: int = STRETCH) -> Batcher:
    """An epoch is seven windows and two tokens."""
    ids_N = np.random.default_rng(0).integers(V, size=B * (EPOCH * T + 2)).astype(np.uint16)
    return Batcher(ids_N, batch=B, window=T, eos_id=0, stretch=stretch, lookahead=5)


def reading_ahead(net: LookaheadSynthesizer, **settings: Any) -> LearnedEstimator:
    return learned(net.double(), **{"stretch": STRETCH, "lookahead": T + 1, **settings})


def lookahead_learner(
    net: LookaheadSynthesizer, dropout: DropoutRates | None = None, **settings: Any
) -> Learner:
    """A learner whose synthesizer reads ahead."""
    return make_learner(reading_ahead(net, **settings), dropout)


def loud() -> LookaheadSynthesizer:
    """One that has something to say from the start."""
    torch.manual_seed(4)
    net = LookaheadSynthesizer(20, 10, 6)
    nn.init.normal_(net.heads.weight)
    return net


@pytest.mark.parametrize("teach_every", [None, 1, 2])
def test_a_lookahead_that_predicts_zero_is_plain_truncation_bitwise(
    teach_every: int | None,
) -> None:
    rates = DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2)
    net = LookaheadSynthesizer(20, 10, 6)
    plain = make_learner(None, rates)
    bootstrapped = teach_every is None
    augmented = lookahead_learner(net, rates, learning_rate=0.0, bootstrapped=bootstrapped)
    results = []
    for learner in (plain, augmented):
        torch.manual_seed(9)
        results.append(
            [
                take_step(
                    learner, batcher().at(k), SYNTHETIC, k, probe_every=10, teach_every=teach_every
                ).nll_nats
                for k in range(2 * EPOCH)
            ]
        )
    assert all_equal(*results)
    assert all_equal(weights(plain.model), weights(augmented.model))


@pytest.mark.parametrize("teach_every", [None, 1])
def test_real_phases_are_plain_truncation_whatever_the_synthesizer_does(
    teach_every: int | None,
) -> None:
    """It reads ahead, is taught, and would inject noise; its net is as loud as it likes."""
    rates = DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2)
    noise = torch.Generator().manual_seed(0)
    before = noise.get_state()
    plain, augmented = (
        make_learner(None, rates),
        lookahead_learner(loud(), rates, bootstrapped=teach_every is None, noise=noise),
    )
    for learner in (plain, augmented):
        torch.manual_seed(9)
        for step in range(2 * EPOCH):
            take_step(learner, batcher().at(step), REAL, step, teach_every=teach_every)
    assert all_equal(weights(plain.model), weights(augmented.model))
    assert torch.equal(noise.get_state(), before)
    for learner in (plain, augmented):
        for step in range(EPOCH):
            take_step(learner, batcher().at(step), SYNTHETIC, step, teach_every=teach_every)
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
    probe_every = 10
    stretch: list[Tensor] = []
    for step in range(1, 3 * EPOCH):  # of which some are probes
        window = text.at(step - 1)
        net.given.clear()
        still = StepPlan(0.0, Mode.SYNTHETIC, 0)
        take_step(learner, window, still, step, probe_every=probe_every)
        token_features = learner.model.token_features
        stretch.append(token_features(window.inputs_TB[0], window.targets_TB[0]))
        right = []
        if not window.is_last and step % probe_every:  # something is injected
            following = text.at(step)
            right = [token_features(following.inputs_TB[0], following.targets_TB[0])]
        if window.is_last or len(stretch) == STRETCH:  # its lessons are learned together
            right.append(torch.cat(stretch))
            stretch.clear()
        assert all_equal(net.given, right)


def test_teaching_comes_every_so_many_stretches_with_the_states_that_lanes_will_carry() -> None:
    """For a model that does not move, the taught states are those that its windows begin with."""
    taught, begun = [], []

    class Spy(LearnedEstimator):
        """Takes notes of what it is taught."""

        def teach(self, states_PBS: Tensor, gradients_PBS: Tensor) -> None:
            taught.append((step, states_PBS, gradients_PBS))
            super().teach(states_PBS, gradients_PBS)

    estimator = Spy(
        loud().double(), learning_rate=1e-3, factor=1.0, stretch=STRETCH, bootstrapped=False
    )
    learner = make_learner(estimator)
    for step in range(EPOCH):
        still = StepPlan(0.0, Mode.REAL, 0)
        take_step(learner, batcher().at(step), still, step, teach_every=2)
        begun.append(learner.state.packed())  # with what the next window begins
    assert [step for step, _, _ in taught] == [0, 2 * STRETCH]
    (_, states_PBS, gradients_PBS), (_, last_PBS, _) = taught
    assert states_PBS.shape == gradients_PBS.shape == (STRETCH, B, 20)
    # float64: windows one by one, or with the text after them
    torch.testing.assert_close(states_PBS[1:], torch.stack(begun[:2]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_PBS[0], begun[5], rtol=1e-12, atol=1e-12)
    assert len(last_PBS) == 1  # the lanes end with that window


def test_gradients_that_are_not_finite_teach_nothing() -> None:
    estimator = reading_ahead(loud(), bootstrapped=False)
    learner = make_learner(estimator)
    take_step(learner, batcher().at(0), REAL, 0, teach_every=1)
    with torch.no_grad():
        learner.model.softmax_bias[0] = float("inf")
    for step in (1, 2, 3):  # 3 begins a stretch
        take_step(learner, batcher().at(step), REAL, step, teach_every=1)
    assert all(bool(torch.isfinite(p).all()) for p in estimator.synthesizer.parameters())
    assert bool(torch.isfinite(estimator.trust.norm))
