"""Many sequences at once: the numbers of each alone, nothing read twice, bounded batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sglm.scoring.predictor
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.linear import ROWS_STEP
from sglm.scoring.batch import STEP_LANES, packed_nlls, sequence_nlls, texts_nll
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import CHUNK_STEPS, stream_nll
from tests.tiny_models import make_network, plain_nlls

VOCABULARY, EOS = 23, 5
# Single float32 numbers; how sequences are batched changes the order of their products.
RELATIVE = 1e-5


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def predictor(request: pytest.FixtureRequest) -> NetworkPredictor:
    return NetworkPredictor(make_network(VOCABULARY, tied=request.param))


@contextmanager
def recorded(model: LSTMLanguageModel) -> Iterator[tuple[list[tuple[int, int]], list[int]]]:
    """The shapes `(steps, lanes)` that the network reads, and how many rows it predicts from."""
    read: list[tuple[int, int]] = []
    predicted: list[int] = []
    features, logits = model.features, model.logits
    linear, repeated_linear = sglm.scoring.predictor.linear, sglm.scoring.predictor.repeated_linear

    def counted(multiply: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda rows, *a, **k: predicted.append(len(rows)) or multiply(rows, *a, **k)

    def repeated(*arguments: Any) -> Callable[..., Tensor]:
        return counted(repeated_linear(*arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model, "features", lambda ids, state: read.append(ids.shape) or features(ids, state)
        )
        patch.setattr(model, "logits", counted(logits))
        patch.setattr(sglm.scoring.predictor, "linear", counted(linear))
        patch.setattr(sglm.scoring.predictor, "repeated_linear", repeated)
        yield read, predicted


def distinct_prefixes(sequences: list[list[int]]) -> int:
    """From which something is predicted."""
    return len({tuple(ids[:end]) for ids in sequences for end in range(1, len(ids))})


def assert_as_defined(predictor: NetworkPredictor, sequences: list[list[int]]) -> None:
    for ids, nlls in zip(sequences, sequence_nlls(predictor, sequences), strict=True):
        np.testing.assert_allclose(nlls, plain_nlls(predictor.model, ids), rtol=RELATIVE)


def test_each_starts_anew(predictor: NetworkPredictor) -> None:
    rng = np.random.default_rng(2)
    # Longer and shorter than a chunk, equal lengths, single tokens, none at all.
    sequences = [rng.integers(0, VOCABULARY, n) for n in (3, 600, 1, 0, 3, 257, 256, 2, 40)]
    together = sequence_nlls(predictor, sequences)
    for ids, nlls in zip(sequences, together, strict=True):
        # 1e-5: single float32 numbers here, not sums.
        np.testing.assert_allclose(nlls, plain_nlls(predictor.model, ids.tolist()), rtol=1e-5)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_neighbours_and_batches_do_not_matter(lengths: list[int], batch_tokens: int) -> None:
    predictor = NetworkPredictor(make_network(VOCABULARY))
    rng = np.random.default_rng(3)
    sequences = [rng.integers(0, VOCABULARY, n) for n in lengths]
    together = sequence_nlls(predictor, sequences, batch_tokens=batch_tokens)
    for ids, nlls in zip(sequences, together, strict=True):
        np.testing.assert_allclose(nlls, sequence_nlls(predictor, [ids])[0], rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_the_sum_over_texts_is_that_of_each_alone(
    predictor: NetworkPredictor, batch_tokens: int
) -> None:
    rng = np.random.default_rng(4)
    texts = [rng.integers(0, VOCABULARY, n).tolist() for n in rng.integers(0, 20, 100)]
    expected = sum(stream_nll(predictor, [text], EOS) for text in texts)
    nll = texts_nll(predictor, iter(texts), EOS, batch_tokens=batch_tokens)
    assert nll == pytest.approx(expected, rel=1e-6)  # a sum: float64


def test_the_tree_is_the_definition(predictor: NetworkPredictor) -> None:
    """All words over two letters, with what shares nothing, is empty, or starts elsewhere."""
    words = [[EOS, *word] for length in range(6) for word in product((1, 2), repeat=length)]
    others = [[], [7], [8, 1, 2], [EOS, *range(20)], [EOS, 1, 2, 1, 2, 1, 2, 1, 2, 1, 3]]
    assert_as_defined(predictor, [*others[:2], *words, *others[2:], *words[:40]])


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=7), min_size=STEP_LANES, max_size=150),
    st.integers(1, 3000),
)
@settings(max_examples=30, deadline=None)
def test_equal_beginnings_do_not_matter(sequences: list[list[int]], batch_tokens: int) -> None:
    """Three different ids only: most of these sequences begin alike, many are equal."""
    predictor = NetworkPredictor(make_network(VOCABULARY))
    together = sequence_nlls(
        predictor, [[EOS, *ids] for ids in sequences], batch_tokens=batch_tokens
    )
    assert len(together) == len(sequences)
    for ids, nlls in zip(sequences, together, strict=True):
        alone = sequence_nlls(predictor, [[EOS, *ids]])[0]
        np.testing.assert_allclose(nlls, alone, rtol=RELATIVE)


def test_the_same_is_not_read_twice(predictor: NetworkPredictor) -> None:
    random = np.random.default_rng(0)
    beginning = random.integers(0, VOCABULARY, 30).tolist()
    # Hypotheses to rescore: what they have in common is read once, and their ends each.
    sequences = [[EOS, *beginning, n % VOCABULARY, n // VOCABULARY, 4] for n in range(200)]
    with recorded(predictor.model) as (read, predicted):
        sequence_nlls(predictor, sequences * 3, batch_tokens=2**15)
    # A few rows are spared sharing: less than STEP_LANES at each step.
    needed = distinct_prefixes(sequences)
    assert needed <= sum(predicted) <= needed + STEP_LANES * len(sequences[0])
    alone = 3 * len(sequences) * (len(sequences[0]) - 1)
    assert sum(steps * lanes for steps, lanes in read) < alone / 4, "kernels come in round sizes"


@pytest.mark.parametrize("count", [2, 5])
def test_nor_is_what_a_few_begin_with(predictor: NetworkPredictor, count: int) -> None:
    """Too few lanes to share step by step: what all have in common, whole."""
    beginning = np.random.default_rng(0).integers(0, VOCABULARY, 400).tolist()
    sequences = [[EOS, *beginning, n, 4, n] for n in range(count)] + [[EOS, *beginning]]
    with recorded(predictor.model) as (read, _):
        assert_as_defined(predictor, sequences)
    assert sum(steps * lanes for steps, lanes in read) < len(beginning) + 8 * count
    assert_as_defined(predictor, [sequences[0]] * count)  # nothing is left to read
    assert_as_defined(predictor, [*sequences, [EOS]])  # not all begin so


def test_few_shapes_are_read(predictor: NetworkPredictor) -> None:
    """Each shape costs a kernel that oneDNN makes and keeps."""
    random = np.random.default_rng(2)
    shapes = set()
    for _ in range(30):
        lengths = random.poisson(12, 700)
        sequences = [[EOS, *random.integers(0, VOCABULARY, length)] for length in lengths]
        with recorded(predictor.model) as (read, predicted):
            sequence_nlls(predictor, sequences)
        # More rows than 32 are filled up for oneDNN, a few are not its.
        shapes |= {*read, *(n if n < ROWS_STEP else -(-n // ROWS_STEP) for n in predicted)}
    # Lanes in steps of 32 and time in steps of 4, rows below 32 apart: not one for every batch.
    assert len(shapes) < 120


def test_batches_are_bounded_and_hardly_padded(predictor: NetworkPredictor) -> None:
    random = np.random.default_rng(1)
    lengths = [*random.integers(0, 60, 400), 900, 300, 1, 2]
    sequences = [random.integers(0, VOCABULARY, length).tolist() for length in lengths]
    for batch_tokens in (CHUNK_STEPS, 1000, 5000):
        with recorded(predictor.model) as (read, predicted):
            sequence_nlls(predictor, sequences, batch_tokens=batch_tokens)
        assert max(steps * lanes for steps, lanes in read) <= batch_tokens
        assert sum(predicted) <= sum(max(length - 1, 0) for length in lengths)
        # At most a quarter of the lanes of a window have ended before it does; and lanes and steps
        # come in round numbers, which weighs more in the small batches of this test.
        assert sum(steps * lanes for steps, lanes in read) <= sum(predicted) * 3 / 2


def test_a_stream_of_texts_needs_no_more_memory_than_a_few(predictor: NetworkPredictor) -> None:
    taken = []
    ahead = []

    def texts() -> Iterator[list[int]]:
        for number in range(3000):
            taken.append(number)
            yield [number % VOCABULARY, 3, 4]

    features = predictor.model.features
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            predictor.model, "features", lambda *given: ahead.append(len(taken)) or features(*given)
        )
        texts_nll(predictor, texts(), EOS, batch_tokens=30)
    assert ahead[0] == 16 * 30 // 3, "reading must begin long before all texts are there"


def test_packed_tokens_stay_where_they_are(predictor: NetworkPredictor) -> None:
    sequences = [[EOS, 1, 2], [], [EOS], [EOS, 9, 9, 9]]
    ids_N = np.array([token for ids in sequences for token in ids])
    nll_N = packed_nlls(predictor, ids_N, np.array([len(ids) for ids in sequences]))
    expected = [
        nll for ids in sequences for nll in [0, *plain_nlls(predictor.model, ids)][: len(ids)]
    ]
    np.testing.assert_allclose(nll_N, expected, rtol=RELATIVE)
    assert sequence_nlls(predictor, []) == []
    assert torch.is_grad_enabled()
