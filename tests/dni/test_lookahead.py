"""A synthesizer that reads what comes next; and noise in its place."""

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sglm.dni.estimator import StretchBeginning
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import LookaheadSynthesizer, make_synthesizer
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.text.batcher import ComingText
from tests.dni.test_learned import B, Constant, S, end_window, observe, some_state
from tests.dni.test_learned import make as make_estimator

T, V, STRETCH, BEYOND = 2, 5, 4, 3
ONE_HOT = torch.eye(V)


class OneHot:
    """As a model whose embeddings tell the input, and no more."""

    def token_features(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return ONE_HOT[inputs]


def make(kind: str, factor: float | None = None, **settings: Any) -> LearnedEstimator:
    torch.manual_seed(0)
    synthesizer = make_synthesizer(kind, S, hidden=16, features=V)
    settings = {"learning_rate": 1e-2, "lookahead": T + 1, "stretch": STRETCH, **settings}
    return make_estimator(synthesizer, factor=factor, **settings)


def begin_stretch(estimator: LearnedEstimator, tokens_CB: Tensor) -> None:
    """Shows what comes; nothing is taught."""
    model = cast(LSTMLanguageModel, OneHot())
    coming = ComingText(tokens_CB, tokens_CB)
    beginning = StretchBeginning(model, some_state(), coming, T)
    estimator.begin_stretch(beginning, teach=False)


def walk(estimator: LearnedEstimator, stretches: int, rows: Tensor) -> Tensor:
    """Relative errors, stretch by stretch, where the next two tokens send back their rows.

    The states are noise: they tell nothing of what comes.
    """
    generator = torch.Generator().manual_seed(1)
    errors = []
    for stretch in range(stretches):
        tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B), generator=generator)
        begin_stretch(estimator, tokens_CB)
        for place in range(STRETCH):
            nearest, next_one = tokens_CB[place * T], tokens_CB[place * T + 1]
            sent_BS = rows[nearest] + 0.5 * rows[next_one]
            agreement = observe(estimator, sent_BS, some_state(STRETCH * stretch + place))
            if agreement is not None:
                errors.append(agreement.relative_mse)
    return torch.stack(errors)


@pytest.fixture
def rows() -> Tensor:
    """What a token sends back; zero on average, as the mean could be known without reading."""
    rows_VS = torch.randn(V, S, generator=torch.Generator().manual_seed(2))
    return rows_VS - rows_VS.mean(dim=0)


def test_what_only_coming_tokens_determine_is_learned_by_reading_them(rows: Tensor) -> None:
    estimator = make("lookahead")
    errors = walk(estimator, 150, rows)
    assert errors[0] == pytest.approx(1.0)  # it says zero at first
    assert errors[-10:].mean() < 0.1
    # The running means reach back over some hundred observations, when it knew less.
    assert 0.9 < estimator.injection.factor <= 1


def test_and_is_beyond_a_net_that_reads_the_state_alone(rows: Tensor) -> None:
    estimator = make("mlp")
    errors = walk(estimator, 400, rows)
    assert errors[-40:].mean() > 0.9
    assert estimator.injection.factor < 0.05


def test_what_is_injected_after_a_window_is_what_is_read_before_the_next(rows: Tensor) -> None:
    """The same estimator seen from its two sides: same state, same coming text, same word, which
    is what is measured and corrected at the stretch's end."""
    estimator = make("lookahead", factor=1.0)
    estimator.injection.bounded = False
    walk(estimator, 5, rows)
    tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B))
    begin_stretch(estimator, tokens_CB)
    unit, injected, predictions = estimator.trust.unit.clone(), [], []
    estimator.synthesizer.register_forward_hook(
        lambda net, given, prediction: predictions.append(prediction.gradient_BS.detach())
    )
    for place in range(STRETCH):
        state, after = some_state(place), some_state(place + 1)
        estimator.enter_window(state)
        injected.append(estimator.estimate(after))
        end_window(estimator, torch.randn(B, S), after, pure=False)
    of_stretch_PBS = predictions[-1].view(STRETCH, B, S) * unit
    assert injected[0].norm() > 0
    for place in range(1, STRETCH):
        # float32: products of other shapes are summed in another order
        torch.testing.assert_close(injected[place - 1], of_stretch_PBS[place])


def test_a_stretch_that_ends_with_the_text_is_read_to_its_end(rows: Tensor) -> None:
    """Fewer windows than a stretch, and nothing beyond: as where the lanes end."""
    estimator = make("lookahead", factor=1.0)
    walk(estimator, 5, rows)
    tokens_CB = torch.randint(V, (2 * T, B))
    begin_stretch(estimator, tokens_CB)
    for _ in range(2):
        estimator.enter_window(some_state())
        assert torch.isfinite(estimator.estimate(some_state())).all()


@pytest.mark.parametrize("coming", [STRETCH * T + BEYOND, STRETCH * T, T + 1])
@pytest.mark.parametrize("lookahead", [1, 2])
def test_long_windows_are_read_from_each_boundary_as_far_as_the_lookahead(
    lookahead: int, coming: int
) -> None:
    """What lies further on does not count; where the text ends, its last token stands for more."""
    estimator = make("lookahead", lookahead=lookahead)
    net, tokens_CB = estimator.synthesizer, torch.randint(V, (coming, B))
    assert isinstance(net, LookaheadSynthesizer)
    begin_stretch(estimator, tokens_CB)
    assert estimator.stretch.summaries is not None
    assert len(estimator.stretch.summaries) == STRETCH + 1
    for place, summary_BN in enumerate(estimator.stretch.summaries):
        own = [min(place * T + step, coming - 1) for step in range(lookahead)]
        alone_1BN = net.summarise(ONE_HOT[tokens_CB[own]], torch.tensor([0]))
        # float32: products of other shapes are summed in another order
        torch.testing.assert_close(summary_BN, alone_1BN[0])


def test_taught_gradients_are_learned_where_they_belong(rows: Tensor) -> None:
    """Taught alone, it knows the gradients of all boundaries of a stretch, and is measured."""
    estimator = make("lookahead", learning_rate=1e-2)
    estimator.bootstrapped = False
    generator = torch.Generator().manual_seed(1)
    for stretch in range(300):
        tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B), generator=generator)
        begin_stretch(estimator, tokens_CB)
        states = [some_state(STRETCH * stretch + place) for place in range(STRETCH)]
        sent_PBS = rows[tokens_CB[: STRETCH * T : T]]
        if stretch < 299:
            estimator.teach(torch.stack([each.packed() for each in states]), sent_PBS)
        for state, sent_BS in zip(states, sent_PBS, strict=True):
            agreement = observe(estimator, sent_BS, state)
    assert agreement is not None
    assert agreement.relative_mse < 0.1
    assert estimator.trust.count == 299
    assert estimator.injection.factor > 0.9


def test_what_windows_send_back_is_not_learned_where_it_is_taught(rows: Tensor) -> None:
    estimator = make("lookahead")
    estimator.bootstrapped = False
    before = copy.deepcopy(estimator.synthesizer.state_dict())
    tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B))
    begin_stretch(estimator, tokens_CB)
    state = some_state()
    observe(estimator, torch.randn(B, S), state, probe=False)
    assert not estimator.stretch.lessons  # nor kept
    observe(estimator, torch.randn(B, S), probe=False, is_last=True)
    walk(estimator, 3, rows)
    after = estimator.synthesizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert estimator.trust.count == 0


def noisy(given_BS: Tensor, seed: int = 5, factor: float | None = 0.7) -> LearnedEstimator:
    generator = torch.Generator().manual_seed(seed)
    return make_estimator(Constant(given_BS), 1e-3, factor, noise=generator)


def test_noise_is_as_long_as_the_prediction_lane_by_lane_but_another_direction() -> None:
    given_BS = torch.randn(B, S) * torch.tensor([[1e-3], [1.0], [2.0], [1e3]])  # the last is cut
    plain, noise = make_estimator(Constant(given_BS), 1e-3, factor=0.7), noisy(given_BS)
    for estimator in (plain, noise):
        observe(estimator, torch.ones(B, S))
    state = some_state()
    prediction_BS, first_BS, second_BS = (
        estimator.estimate(state) for estimator in (plain, noise, noise)
    )
    for noise_BS in (first_BS, second_BS):
        torch.testing.assert_close(noise_BS.norm(dim=1), prediction_BS.norm(dim=1))
    directions_3BS = torch.stack([prediction_BS, first_BS, second_BS])
    directions_3BS = directions_3BS / directions_3BS.norm(dim=2, keepdim=True)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cosines_B = (directions_3BS[one] * directions_3BS[other]).sum(dim=1)
        assert cosines_B.max() < 0.999


def test_in_place_of_nothing_there_is_no_noise() -> None:
    for estimator in (noisy(torch.zeros(B, S)), noisy(torch.randn(B, S), factor=None)):
        observe(estimator, torch.ones(B, S))
        # Of the first observation nothing was predicted, so the calibrated factor is zero.
        assert torch.equal(estimator.estimate(some_state()), torch.zeros(B, S))


def test_noise_goes_on_where_its_saved_state_was() -> None:
    given_BS = torch.randn(B, S)
    estimator, other = noisy(given_BS), noisy(given_BS, seed=6)
    observe(estimator, torch.ones(B, S))
    state: LSTMState = some_state()
    estimator.estimate(state)
    other.load_state_dict(copy.deepcopy(estimator.state_dict()))
    for _ in range(2):
        assert torch.equal(estimator.estimate(state), other.estimate(state))
