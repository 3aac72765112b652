"""A boundary whose synthesizer reads what comes next; and noise in its place."""

import copy

import pytest
import torch
from torch import Tensor

from sglm.dni.boundary import Boundary
from sglm.dni.synthesizer import LookaheadSynthesizer, make_synthesizer
from sglm.model.state import LSTMState
from tests.dni.test_boundary import B, S, Says, observe, some_state

T, V, STRETCH, BEYOND = 2, 5, 4, 3
ONE_HOT = torch.eye(V)


def of_inputs(inputs_CB: Tensor, targets_CB: Tensor) -> Tensor:
    """Features that tell the input."""
    return ONE_HOT[inputs_CB]


def make(
    kind: str,
    factor: float | None = None,
    learning_rate: float = 1e-2,
    lookahead: int = T + 1,
) -> Boundary:
    torch.manual_seed(0)
    return Boundary(
        make_synthesizer(kind, S, 16, False, V),
        learning_rate,
        factor,
        stretch=STRETCH,
        token_features=of_inputs if kind == "lookahead" else None,
        lookahead=lookahead,
    )


def walk(boundary: Boundary, stretches: int, rows: Tensor) -> Tensor:
    """Relative errors, stretch by stretch, where the next two tokens send back their rows.

    The states are noise: they tell nothing of what comes.
    """
    generator = torch.Generator().manual_seed(1)
    errors = []
    for stretch in range(stretches):
        tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B), generator=generator)
        if boundary.token_features is not None:
            boundary.look_ahead(tokens_CB, tokens_CB, T)
        for place in range(STRETCH):
            nearest, next_one = tokens_CB[place * T], tokens_CB[place * T + 1]
            sent_BS = rows[nearest] + 0.5 * rows[next_one]
            found = observe(boundary, sent_BS, some_state(STRETCH * stretch + place))
            if found is not None:
                errors.append(found.relative_mse)
    return torch.stack(errors)


@pytest.fixture
def rows() -> Tensor:
    """What a token sends back; zero on average, as the mean could be known without reading."""
    rows_VS = torch.randn(V, S, generator=torch.Generator().manual_seed(2))
    return rows_VS - rows_VS.mean(dim=0)


def test_what_only_coming_tokens_determine_is_learned_by_reading_them(rows: Tensor) -> None:
    boundary = make("lookahead")
    errors = walk(boundary, 150, rows)
    assert errors[0] == pytest.approx(1.0)  # it says zero at first
    assert errors[-10:].mean() < 0.1
    # The running means reach back over some hundred observations, when it knew less.
    assert 0.9 < boundary.factor <= 1


def test_and_is_beyond_a_net_that_reads_the_state_alone(rows: Tensor) -> None:
    boundary = make("mlp")
    errors = walk(boundary, 400, rows)
    assert errors[-40:].mean() > 0.9
    assert boundary.factor < 0.05


def test_what_is_injected_after_a_window_is_what_is_read_before_the_next(rows: Tensor) -> None:
    """The same boundary seen from its two sides: same state, same coming text, same word, which
    is what is measured and corrected at the stretch's end."""
    boundary = make("lookahead", factor=1.0)
    boundary.trust_bound = False
    walk(boundary, 5, rows)
    tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B))
    boundary.look_ahead(tokens_CB, tokens_CB, T)
    unit, injected, heard = boundary.trust.unit.clone(), [], []
    boundary.synthesizer.register_forward_hook(
        lambda net, given, prediction: heard.append(prediction.gradient_BS.detach())
    )
    for place in range(STRETCH):
        state, after = some_state(place), some_state(place + 1)
        reading = boundary.read(state)
        injected.append(boundary.synthesize(after))
        boundary.observe(reading, torch.randn(B, S), after, pure=False)
        boundary.end_window(is_last=False)
    of_stretch_PBS = heard[-1].view(STRETCH, B, S) * unit
    assert injected[0].norm() > 0
    for place in range(1, STRETCH):
        # float32: products of other shapes are summed in another order
        torch.testing.assert_close(injected[place - 1], of_stretch_PBS[place])


def test_a_stretch_that_ends_with_the_text_is_read_to_its_end(rows: Tensor) -> None:
    """Fewer windows than a stretch, and nothing beyond: as where the lanes end."""
    boundary = make("lookahead", factor=1.0)
    walk(boundary, 5, rows)
    tokens_CB = torch.randint(V, (2 * T, B))
    boundary.look_ahead(tokens_CB, tokens_CB, T)
    for _ in range(2):
        boundary.read(some_state())
        assert torch.isfinite(boundary.synthesize(some_state())).all()


@pytest.mark.parametrize("coming", [STRETCH * T + BEYOND, STRETCH * T, T + 1])
@pytest.mark.parametrize("lookahead", [1, 2])
def test_long_windows_are_read_from_each_boundary_as_far_as_the_lookahead(
    lookahead: int, coming: int
) -> None:
    """What lies further on does not count; where the text ends, its last token stands for more."""
    boundary = make("lookahead", lookahead=lookahead)
    net, tokens_CB = boundary.synthesizer, torch.randint(V, (coming, B))
    assert isinstance(net, LookaheadSynthesizer)
    boundary.look_ahead(tokens_CB, tokens_CB, T)
    assert boundary.summaries is not None
    assert len(boundary.summaries) == STRETCH + 1
    for place, summary_BN in enumerate(boundary.summaries):
        own = [min(place * T + step, coming - 1) for step in range(lookahead)]
        alone_1BN = net.summarise(ONE_HOT[tokens_CB[own]], torch.tensor([0]))
        # float32: products of other shapes are summed in another order
        torch.testing.assert_close(summary_BN, alone_1BN[0])


def test_taught_gradients_are_learned_where_they_belong(rows: Tensor) -> None:
    """Taught alone, it knows the gradients of all boundaries of a stretch, and is measured."""
    boundary = make("lookahead", learning_rate=1e-2)
    boundary.bootstrapped = False
    generator = torch.Generator().manual_seed(1)
    for stretch in range(300):
        tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B), generator=generator)
        boundary.look_ahead(tokens_CB, tokens_CB, T)
        states = [some_state(STRETCH * stretch + place) for place in range(STRETCH)]
        sent_PBS = rows[tokens_CB[: STRETCH * T : T]]
        if stretch < 299:
            boundary.teach(torch.stack([each.packed() for each in states]), sent_PBS)
        for state, sent_BS in zip(states, sent_PBS, strict=True):
            found = observe(boundary, sent_BS, state)
    assert found is not None
    assert found.relative_mse < 0.1
    assert boundary.trust.count == 299
    assert boundary.factor > 0.9


def test_what_windows_send_back_is_not_learned_where_it_is_taught(rows: Tensor) -> None:
    boundary = make("lookahead")
    boundary.bootstrapped = False
    before = copy.deepcopy(boundary.synthesizer.state_dict())
    tokens_CB = torch.randint(V, (STRETCH * T + BEYOND, B))
    boundary.look_ahead(tokens_CB, tokens_CB, T)
    state = some_state()
    boundary.observe(boundary.read(state), torch.randn(B, S), state, pure=True, probe=False)
    assert not boundary.lessons  # nor kept
    boundary.end_window(is_last=True)
    walk(boundary, 3, rows)
    after = boundary.synthesizer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert boundary.trust.count == 0


def noisy(answer_BS: Tensor, seed: int = 5, factor: float | None = 0.7) -> Boundary:
    generator = torch.Generator().manual_seed(seed)
    return Boundary(Says(answer_BS), 1e-3, factor, noise=generator)


def test_noise_is_as_long_as_the_prediction_lane_by_lane_but_another_direction() -> None:
    answer_BS = torch.randn(B, S) * torch.tensor([[1e-3], [1.0], [2.0], [1e3]])  # the last is cut
    said, noise = Boundary(Says(answer_BS), 1e-3, factor=0.7), noisy(answer_BS)
    for boundary in (said, noise):
        observe(boundary, torch.ones(B, S))
    state = some_state()
    prediction_BS, first_BS, second_BS = (
        boundary.synthesize(state) for boundary in (said, noise, noise)
    )
    for noise_BS in (first_BS, second_BS):
        torch.testing.assert_close(noise_BS.norm(dim=1), prediction_BS.norm(dim=1))
    directions_3BS = torch.stack([prediction_BS, first_BS, second_BS])
    directions_3BS = directions_3BS / directions_3BS.norm(dim=2, keepdim=True)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cosines_B = (directions_3BS[one] * directions_3BS[other]).sum(dim=1)
        assert cosines_B.max() < 0.999


def test_in_place_of_nothing_there_is_no_noise() -> None:
    for boundary in (noisy(torch.zeros(B, S)), noisy(torch.randn(B, S), factor=None)):
        observe(boundary, torch.ones(B, S))
        # Of the first observation nothing was predicted, so the calibrated factor is zero.
        assert torch.equal(boundary.synthesize(some_state()), torch.zeros(B, S))


def test_noise_goes_on_where_its_saved_state_was() -> None:
    answer_BS = torch.randn(B, S)
    boundary, other = noisy(answer_BS), noisy(answer_BS, seed=6)
    observe(boundary, torch.ones(B, S))
    state: LSTMState = some_state()
    boundary.synthesize(state)
    other.load_state_dict(copy.deepcopy(boundary.state_dict()))
    for _ in range(2):
        assert torch.equal(boundary.synthesize(state), other.synthesize(state))
