"""What every way of adapting keeps to."""

import copy

import numpy as np
import pytest
import torch

from sglm.adapt.reader import AdaptingPredictor
from sglm.scoring.batch import sequence_nlls
from sglm.scoring.predictor import IGNORED, NetworkPredictor
from sglm.scoring.stream import read_on, stream_nll
from tests.adapt.readers import EOS, VOCABULARY, WAYS, make_adapting
from tests.tiny_models import make_network

# Float32 products cut differently round differently, and what is learned from them too.
RELATIVE = 1e-4


@pytest.fixture(params=WAYS)
def predictor(request: pytest.FixtureRequest) -> AdaptingPredictor:
    return make_adapting(request.param)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, 60)


def predicted(predictor: AdaptingPredictor, ids: np.ndarray) -> torch.Tensor:
    """`(T, V)`, whatever is predicted after each id."""
    blocks, _ = predictor.distributions(torch.from_numpy(ids)[:, None], predictor.start(1))
    return torch.cat([logprobs_MV for _, logprobs_MV in blocks])


def test_another_future_changes_nothing_before_it(
    predictor: AdaptingPredictor, ids: np.ndarray
) -> None:
    other = ids.copy()
    other[41:] = (other[41:] + 1) % VOCABULARY
    first, second = predicted(predictor, ids), predicted(predictor, other)
    assert torch.equal(first[:41], second[:41])
    assert not torch.allclose(first[41:], second[41:])


def test_the_targets_asked_about_are_not_learned_from(
    predictor: AdaptingPredictor, ids: np.ndarray
) -> None:
    ids_T1 = torch.from_numpy(ids)[:, None]
    targets_T1 = torch.full_like(ids_T1, 3)
    targets_T1[:-1:2] = IGNORED
    logprobs_T1, _ = predictor.read(ids_T1, targets_T1, predictor.start(1))
    expected_T = predicted(predictor, ids)[:, 3].double()
    expected_T[:-1:2] = 0.0
    torch.testing.assert_close(logprobs_T1[:, 0], expected_T, rtol=1e-5, atol=1e-6)


def test_what_was_read_matters_beyond_the_state(
    predictor: AdaptingPredictor, ids: np.ndarray
) -> None:
    static = NetworkPredictor(predictor.network)
    nlls, _ = read_on(predictor, ids, predictor.start(1))
    expected, _ = read_on(static, ids, static.start(1))
    assert np.abs(nlls - expected)[20:].max() > 0.01


@pytest.mark.parametrize("cut", [1, 7, 8, 31])
def test_pieces_add_up(predictor: AdaptingPredictor, ids: np.ndarray, cut: int) -> None:
    whole, _ = read_on(predictor, ids, predictor.start(1))
    first, state = read_on(predictor, ids[: cut + 1], predictor.start(1))
    second, _ = read_on(predictor, ids[cut:], state)
    np.testing.assert_allclose([*first, *second], whole, rtol=RELATIVE, atol=1e-5)


def test_a_step_without_targets_is_learned_from_too(
    predictor: AdaptingPredictor, ids: np.ndarray
) -> None:
    whole, _ = read_on(predictor, ids, predictor.start(1))
    _, state = predictor.read(torch.from_numpy(ids[:30, None]), None, predictor.start(1))
    rest, _ = read_on(predictor, ids[30:], state)
    np.testing.assert_allclose(rest, whole[30:], rtol=RELATIVE, atol=1e-5)


def test_a_state_stays_valid(predictor: AdaptingPredictor, ids: np.ndarray) -> None:
    _, state = read_on(predictor, ids[:24], predictor.start(1))
    once, _ = read_on(predictor, ids[23:], state)
    again, _ = read_on(predictor, ids[23:], state)
    np.testing.assert_array_equal(once, again)


def test_lanes_learn_each_for_itself(predictor: AdaptingPredictor, ids: np.ndarray) -> None:
    ids_TB = torch.from_numpy(np.stack([ids, ids[::-1], np.roll(ids, 9)], axis=1).copy())
    _, state = predictor.read(ids_TB[:20], None, predictor.start(3))
    state = predictor.select(state, torch.tensor([2, 0]))
    blocks, _ = predictor.distributions(ids_TB[20:, [2, 0]], state, last_steps=4)
    ((_, together_NV),) = blocks
    for place, lane in enumerate((2, 0)):
        alone_TV = predicted(predictor, ids_TB[:, lane].numpy())
        torch.testing.assert_close(
            together_NV.view(4, 2, VOCABULARY)[:, place], alone_TV[-4:], rtol=RELATIVE, atol=1e-5
        )


def test_probabilities_sum_to_one(predictor: AdaptingPredictor, ids: np.ndarray) -> None:
    total_T = predicted(predictor, ids).double().exp().sum(1)
    torch.testing.assert_close(total_T, torch.ones_like(total_T), rtol=0, atol=1e-5)


def test_texts_start_from_the_loaded_model_which_stays_as_it_was(
    predictor: AdaptingPredictor, ids: np.ndarray
) -> None:
    before = copy.deepcopy(predictor.network.state_dict())
    texts = [[EOS, *ids[:20].tolist()], [EOS, *ids[20:].tolist()], [EOS, *ids[:20].tolist()]]
    first, second, third = sequence_nlls(predictor, texts)
    np.testing.assert_array_equal(first, third)
    assert second.sum() == pytest.approx(stream_nll(predictor, ids[20:], EOS), rel=RELATIVE)
    after = predictor.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.grad is None for weight in predictor.network.parameters())


def test_texts_are_read_one_by_one_because_states_are_large(
    predictor: AdaptingPredictor, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = []
    read = predictor.read
    monkeypatch.setattr(
        predictor,
        "read",
        lambda ids_TB, *others: lanes.append(ids_TB.shape[1]) or read(ids_TB, *others),
    )
    sequence_nlls(predictor, [ids[:9].tolist()] * 3)
    assert set(lanes) == {1}


def test_the_modes_of_the_caller_stay(predictor: AdaptingPredictor, ids: np.ndarray) -> None:
    expected, _ = read_on(predictor, ids, predictor.start(1))
    with torch.inference_mode():
        inside, state = read_on(predictor, ids[:30], predictor.start(1))
    outside, _ = read_on(predictor, ids[29:], state)
    assert torch.is_grad_enabled()
    np.testing.assert_allclose([*inside, *outside], expected, rtol=RELATIVE, atol=1e-5)


def test_networks_with_their_own_softmax_matrix(ids: np.ndarray) -> None:
    for way in WAYS:
        predictor = make_adapting(way, make_network(VOCABULARY, tied=False))
        assert np.isfinite(stream_nll(predictor, ids, EOS))
