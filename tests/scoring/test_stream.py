"""One long text: every token once, whatever the chunks; bounded memory; no trace."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sglm.scoring.predictor
from sglm.model.language_model import DropoutRates
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import StoppedReading, read_on, stream_nll
from tests.tiny_models import make_network, plain_nlls

VOCABULARY, EOS = 23, 5
# Float32 products cut differently round differently; the sums are float64.
RELATIVE = 1e-6


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def predictor(request: pytest.FixtureRequest) -> NetworkPredictor:
    return NetworkPredictor(make_network(VOCABULARY, tied=request.param))


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, 1100).astype(np.uint16)


def test_every_token_counts_once_from_the_state_after_eos(
    predictor: NetworkPredictor, ids: np.ndarray
) -> None:
    expected = sum(plain_nlls(predictor.model, [EOS, *ids.tolist()]))
    assert stream_nll(predictor, ids, EOS) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("chunk_steps", [1, 7, 255, 256, 257, 1100, 5000])
def test_the_chunk_does_not_matter(
    predictor: NetworkPredictor, ids: np.ndarray, chunk_steps: int
) -> None:
    whole = stream_nll(predictor, ids, EOS, chunk_steps=100_000)
    nll = stream_nll(predictor, ids, EOS, chunk_steps=chunk_steps)
    assert nll == pytest.approx(whole, rel=RELATIVE)


@pytest.mark.parametrize("entries", [1, 30, 1000])
def test_the_memory_for_logits_does_not_matter(
    predictor: NetworkPredictor,
    ids: np.ndarray,
    entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = stream_nll(predictor, ids[:200], EOS)
    monkeypatch.setattr(sglm.scoring.predictor, "LOGIT_ENTRIES", entries)
    assert stream_nll(predictor, ids[:200], EOS) == pytest.approx(whole, rel=RELATIVE)


@given(st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=20, deadline=None)
def test_pieces_are_one_stream(cuts: list[int]) -> None:
    predictor = NetworkPredictor(make_network(VOCABULARY))
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 400)
    edges = [0, *sorted(cuts), 400]
    pieces = [ids[a:b].tolist() for a, b in pairwise(edges)]
    nll = stream_nll(predictor, pieces, EOS, chunk_steps=64)
    assert nll == pytest.approx(stream_nll(predictor, ids, EOS), rel=RELATIVE)


def test_logits_are_never_there_for_more_than_a_few_steps(
    ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_network(VOCABULARY)
    predictor = NetworkPredictor(model)
    sizes = []
    linear = sglm.scoring.predictor.linear
    monkeypatch.setattr(
        sglm.scoring.predictor,
        "linear",
        lambda features, **to: sizes.append(len(features)) or linear(features, **to),
    )
    monkeypatch.setattr(sglm.scoring.predictor, "LOGIT_ENTRIES", 10 * VOCABULARY)
    stream_nll(predictor, ids, EOS)
    assert max(sizes) == 10
    assert sum(sizes) == len(ids)


def test_nothing_to_evaluate_is_no_loss(predictor: NetworkPredictor) -> None:
    assert stream_nll(predictor, np.empty(0, np.uint16), EOS) == 0


def test_stops_when_asked_to(predictor: NetworkPredictor, ids: np.ndarray) -> None:
    answers = iter([False, False, True])
    predictor.model.train()
    with pytest.raises(StoppedReading):
        stream_nll(predictor, ids, EOS, chunk_steps=100, should_stop=lambda: next(answers))
    assert next(answers, "none left") == "none left"
    assert predictor.model.training, "the mode must be restored also when stopped"
    predictor.model.eval()


def test_leaves_no_trace(ids: np.ndarray) -> None:
    model = make_network(VOCABULARY)
    predictor = NetworkPredictor(model)
    expected = stream_nll(predictor, ids, EOS)
    model.dropout = DropoutRates(input=0.5, between=0.5, output=0.5, embedding=0.5, weight=0.5)
    model.train()
    before = torch.get_rng_state()
    assert stream_nll(predictor, ids, EOS) == expected, "dropout must be off"
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reading_on_is_reading_whole(predictor: NetworkPredictor, ids: np.ndarray) -> None:
    whole, _ = read_on(predictor, ids.astype(np.int64), predictor.start(1))
    first, state = read_on(predictor, ids[:301].astype(np.int64), predictor.start(1))
    second, _ = read_on(predictor, ids[300:].astype(np.int64), state)
    np.testing.assert_allclose([*first, *second], whole, rtol=1e-5)
