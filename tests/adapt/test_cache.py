"""The continuous cache against its definition, token by token in float64."""

import numpy as np
import pytest
import torch

from sglm.adapt import cache
from sglm.adapt.cache import CacheReader, refuse_if_too_large
from sglm.adapt.reader import AdaptingPredictor, StaticReader
from sglm.errors import InputError
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import read_on
from tests.adapt.readers import VOCABULARY
from tests.tiny_models import make_network


def brute_force(
    ids: np.ndarray, *, size: int, weight: float, sharpness: float
) -> tuple[list[float], NetworkPredictor]:
    """Grave et al. 2017, section 3; features and the model's own predictions from the network."""
    static = NetworkPredictor(make_network(VOCABULARY))
    with torch.no_grad():
        features_T1H, _ = static.model.features(
            torch.from_numpy(ids)[:, None], static.model.start_state(1)
        )
    features = features_T1H[:, 0].double()
    own, _ = read_on(static, ids, static.start(1))
    nlls = []
    for now in range(len(ids) - 1):
        scores = [
            (sharpness * float(features[now] @ features[then]), ids[then + 1])
            for then in range(max(0, now - size), now)
        ]
        total = sum(np.exp(score) for score, _ in scores)
        p_cache = sum(np.exp(score) for score, word in scores if word == ids[now + 1]) / (
            total or 1.0
        )
        share = weight if scores else 0.0
        nlls.append(-np.log((1 - share) * np.exp(-own[now]) + share * p_cache))
    return nlls, static


@pytest.mark.parametrize(("size", "at_a_time"), [(1, 2**22), (9, 40), (500, 2**22)])
def test_is_what_the_paper_defines(
    size: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SIMILARITIES", at_a_time)
    ids = np.random.default_rng(3).integers(0, VOCABULARY, 90)
    expected, static = brute_force(ids, size=size, weight=0.4, sharpness=1.5)
    features = static.model.shape.widths[-1]
    reader = CacheReader(
        StaticReader(static.model), features=features, size=size, weight=0.4, sharpness=1.5
    )
    predictor = AdaptingPredictor(reader, network=static.model)
    first, state = read_on(predictor, ids[:41], predictor.start(1))
    second, state = read_on(predictor, ids[40:], state)
    # Float32 features and similarities; exponents of up to about ten.
    np.testing.assert_allclose([*first, *second], expected, rtol=1e-4)
    assert len(state[0].features_NH) <= size
    start = reader.start()
    assert start.features_NH.shape == (0, features)
    assert start.features_NH.dtype == state[0].features_NH.dtype
    assert start.words_N.dtype == state[0].words_N.dtype


def test_one_larger_than_memory_is_refused_before_it_starts() -> None:
    network = make_network(VOCABULARY)
    with pytest.raises(InputError, match=r"a cache of 1,000,000,000,000 tokens .* lower size to"):
        refuse_if_too_large(10**12, network)
    refuse_if_too_large(10_000, network)
