"""Exact gradients over more than a window: of text that is to come, and BPTT(h; T)."""

from collections import deque

import pytest
import torch
from torch import Tensor

from sglm.dni.estimator import StretchBeginning
from sglm.model.language_model import DropoutRates
from sglm.model.state import LSTMState
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import ComingText, Window
from sglm.train.learner import Learner
from tests.dni.exact import future_gradients
from tests.train.test_step import (
    REAL,
    B,
    T,
    V,
    all_equal,
    gradients,
    make_learner,
    take_step,
    weights,
    windows,
)

P, BEYOND = 3, 2  # boundaries; steps past the last window
STILL = StepPlan(0.0, Mode.REAL, 0)  # rate zero: look at gradients, move nothing


def some_coming_text() -> ComingText:
    ids = torch.randint(V, (P * T + BEYOND + 1, B), generator=torch.Generator().manual_seed(4))
    return ComingText(ids[:-1], ids[1:])


def some_state(learner: Learner) -> LSTMState:
    """What a window before the text leaves behind."""
    _, state = learner.model.features(windows(1, seed=8)[0].inputs_TB, learner.state)
    return state.detach()


def test_future_gradients_are_those_of_the_whole_coming_text_at_each_boundary() -> None:
    learner, coming = make_learner(), some_coming_text()
    model, state = learner.model, some_state(learner)
    states_PBS, gradients_PBS = future_gradients(StretchBeginning(model, state, coming, T), P)
    assert states_PBS.shape == gradients_PBS.shape == (P, B, 20)
    for boundary in range(P):
        leaf = state.as_leaf()
        inputs_CB, targets_CB = (ids[boundary * T :] for ids in coming)
        features_CBH, _ = model.features(inputs_CB, leaf)  # one long pass
        model.nll(features_CBH, targets_CB).backward()
        # float64: the same sums in another order
        torch.testing.assert_close(states_PBS[boundary], leaf.packed(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            gradients_PBS[boundary], leaf.packed_gradient(), rtol=1e-10, atol=1e-12
        )
        _, state = model.features(inputs_CB[:T], state)


def test_future_gradients_of_a_lane_do_not_depend_on_the_others() -> None:
    """Neither on their number nor on what they read: nats are summed, not averaged."""
    learner, coming = make_learner(), some_coming_text()
    state = some_state(learner)
    together = future_gradients(StretchBeginning(learner.model, state, coming, T), P)
    for lane in range(B):
        own = ComingText(*(ids[:, [lane]] for ids in coming))
        of_lane = state.lanes(torch.tensor([lane]))
        alone = future_gradients(StretchBeginning(learner.model, of_lane, own, T), P)
        for left, right in zip(together, alone, strict=True):
            torch.testing.assert_close(left[:, [lane]], right, rtol=1e-10, atol=1e-12)  # as above


def test_future_gradients_leave_the_training_alone() -> None:
    """Not a random number, not a parameter's gradient; yet they see dropout, as the training."""
    rates = DropoutRates(input=0.2, between=0.2, output=0.2, embedding=0.2, weight=0.2)
    learner, plain = make_learner(dropout=rates), make_learner()
    state, coming = some_state(plain), some_coming_text()
    take_step(learner, windows(1)[0], STILL, 0)
    random_before, gradients_before = torch.get_rng_state(), gradients(learner)
    _, found_PBS = future_gradients(StretchBeginning(learner.model, state, coming, T), P)
    assert torch.equal(torch.get_rng_state(), random_before)
    assert all_equal(gradients(learner), gradients_before)
    assert not found_PBS.requires_grad
    _, without_PBS = future_gradients(StretchBeginning(plain.model, state, coming, T), P)
    assert not torch.equal(found_PBS, without_PBS)


def with_horizon(windows_back: int) -> Learner:
    """A learner that reads so many windows again before every new one."""
    learner = make_learner()
    learner.past = deque(maxlen=windows_back)
    return learner


def by_hand(learner: Learner, text: list[Window], state: LSTMState) -> list[Tensor]:
    """Gradients of the mean loss of the last window, in a single pass over all of them."""
    model = learner.model
    model.zero_grad()
    features, _ = model.features(torch.cat([each.inputs_TB for each in text]), state)
    (model.nll(features[-T:], text[-1].targets_TB) / text[-1].targets_TB.numel()).backward()
    return gradients(learner)


@pytest.mark.parametrize("windows_back", [1, 2])
def test_a_horizon_is_the_newest_loss_through_exactly_so_many_windows(windows_back: int) -> None:
    """BPTT(h; T), Williams & Peng 1990, for a model that does not move."""
    text, learner, plain = windows(5), with_horizon(windows_back), make_learner()
    states = []
    for step, window in enumerate(text):
        states.append(plain.state)  # before the window
        result = take_step(learner, window, STILL, step)
        expected_nll = take_step(plain, window, STILL, step).nll_nats
        # float64 sums in another order, here and below
        torch.testing.assert_close(result.nll_nats, expected_nll, rtol=1e-12, atol=0)
        assert result.tokens == B * T  # the past is not counted again
        torch.testing.assert_close(
            learner.state.packed(), plain.state.packed(), rtol=1e-12, atol=1e-12
        )
        first = max(0, step - windows_back)
        expected = by_hand(make_learner(), text[first : step + 1], states[first])
        for found, right in zip(gradients(learner), expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
        if step > 0:
            shorter = by_hand(make_learner(), text[first + 1 : step + 1], states[first + 1])
            pairs = zip(gradients(learner), shorter, strict=True)
            assert max((a - b).abs().max() for a, b in pairs) > 1e-5


def test_a_horizon_of_one_window_is_the_plain_step_bitwise() -> None:
    learner, plain = with_horizon(0), make_learner()
    for step, window in enumerate(windows(4)):
        for each in (learner, plain):
            take_step(each, window, REAL, step)
    assert all_equal(weights(learner.model), weights(plain.model))
    longer = with_horizon(1)
    for step, window in enumerate(windows(4)):
        take_step(longer, window, REAL, step)
    assert not all_equal(weights(longer.model), weights(plain.model))


def test_no_epoch_begins_with_a_past() -> None:
    """Its windows see what those of the first epoch saw, although other text was read before."""
    learner = with_horizon(2)
    epochs: list[list[Tensor]] = []
    for epoch in range(2):
        text = windows(3)  # the first one starts the lanes anew
        epochs.append([])
        for step, window in enumerate(text):
            take_step(learner, window, STILL, 3 * epoch + step)
            epochs[-1] += gradients(learner)
    assert all_equal(*epochs)


def test_with_a_horizon_the_past_is_read_with_the_weights_of_today() -> None:
    text, learner = windows(2), with_horizon(1)
    take_step(learner, text[0], REAL, 0)
    start = learner.model.start_state(B)
    today = make_learner()
    today.model.load_state_dict(learner.model.state_dict())
    take_step(learner, text[1], STILL, 1)
    for found, right in zip(gradients(learner), by_hand(today, text, start), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
