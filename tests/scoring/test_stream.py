"""One long text: every token once, whatever the chunks; bounded memory; no trace."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sglm.scoring.stream
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.stream import evaluate_stream, read_on
from tests.tiny_models import make_network, plain_nlls

VOCABULARY, EOS = 23, 5
# Float32 products cut differently round differently; the sums are float64.
RELATIVE = 1e-6


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> LSTMLanguageModel:
    return make_network(VOCABULARY, tied=request.param)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, 1100).astype(np.uint16)


def test_every_token_counts_once_from_the_state_after_eos(
    model: LSTMLanguageModel, ids: np.ndarray
) -> None:
    expected = sum(plain_nlls(model, [EOS, *ids.tolist()]))
    assert evaluate_stream(model, ids, EOS) == pytest.approx(expected, rel=RELATIVE)


@pytest.mark.parametrize("chunk_steps", [1, 7, 255, 256, 257, 1100, 5000])
def test_the_chunk_does_not_matter(
    model: LSTMLanguageModel, ids: np.ndarray, chunk_steps: int
) -> None:
    whole = evaluate_stream(model, ids, EOS, chunk_steps=100_000)
    found = evaluate_stream(model, ids, EOS, chunk_steps=chunk_steps)
    assert found == pytest.approx(whole, rel=RELATIVE)


@pytest.mark.parametrize("entries", [1, 30, 1000])
def test_the_memory_for_logits_does_not_matter(
    model: LSTMLanguageModel,
    ids: np.ndarray,
    entries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = evaluate_stream(model, ids[:200], EOS)
    monkeypatch.setattr(sglm.scoring.stream, "LOGIT_ENTRIES", entries)
    assert evaluate_stream(model, ids[:200], EOS) == pytest.approx(whole, rel=RELATIVE)


@given(st.lists(st.integers(0, 400), max_size=8))
@settings(max_examples=20, deadline=None)
def test_pieces_are_one_stream(cuts: list[int]) -> None:
    model = make_network(VOCABULARY)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 400)
    edges = [0, *sorted(cuts), 400]
    pieces = [ids[a:b].tolist() for a, b in pairwise(edges)]
    found = evaluate_stream(model, pieces, EOS, chunk_steps=64)
    assert found == pytest.approx(evaluate_stream(model, ids, EOS), rel=RELATIVE)


def test_logits_are_never_there_for_more_than_a_few_steps(
    ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_network(VOCABULARY)
    sizes = []
    logits = model.logits
    monkeypatch.setattr(
        model, "logits", lambda features: sizes.append(len(features)) or logits(features)
    )
    monkeypatch.setattr(sglm.scoring.stream, "LOGIT_ENTRIES", 10 * VOCABULARY)
    evaluate_stream(model, ids, EOS)
    assert max(sizes) == 10
    assert sum(sizes) == len(ids)


def test_nothing_to_evaluate_is_no_loss(model: LSTMLanguageModel) -> None:
    assert evaluate_stream(model, np.empty(0, np.uint16), EOS) == 0


def test_stops_when_asked_to(model: LSTMLanguageModel, ids: np.ndarray) -> None:
    answers = iter([False, False, True])
    model.train()
    found = evaluate_stream(model, ids, EOS, chunk_steps=100, should_stop=lambda: next(answers))
    assert found is None
    assert next(answers, "none left") == "none left"
    assert model.training, "the mode must be restored also when stopped"
    model.eval()


def test_leaves_no_trace(ids: np.ndarray) -> None:
    from sglm.model.language_model import DropoutRates

    model = make_network(VOCABULARY)
    expected = evaluate_stream(model, ids, EOS)
    model.dropout = DropoutRates(input=0.5, between=0.5, output=0.5, embedding=0.5, weight=0.5)
    model.train()
    before = torch.get_rng_state()
    assert evaluate_stream(model, ids, EOS) == expected, "dropout must be off"
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reading_on_is_reading_whole(model: LSTMLanguageModel, ids: np.ndarray) -> None:
    whole, _ = read_on(model, ids.astype(np.int64), model.start_state(1))
    first, state = read_on(model, ids[:301].astype(np.int64), model.start_state(1))
    second, _ = read_on(model, ids[300:].astype(np.int64), state)
    np.testing.assert_allclose([*first, *second], whole, rtol=1e-5)
