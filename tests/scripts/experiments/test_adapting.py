"""The control of synthetic gradients: what is proposed from another text."""

import numpy as np
import pytest

from scripts.experiments.adapting import Replayed, proposals_of
from sglm.adapt.reader import AdaptingPredictor
from sglm.adapt.synthetic import SyntheticReader
from sglm.scoring.stream import stream_nll
from tests.adapt.readers import EOS, VOCABULARY, make_gradients
from tests.tiny_models import make_network


def test_a_texts_own_proposals_are_adapting_and_anothers_are_not() -> None:
    network = make_network(VOCABULARY)
    reader = SyntheticReader(network, gradients=make_gradients(network))
    own, other = np.random.default_rng(8).integers(0, VOCABULARY, (2, 100))
    adapted = stream_nll(AdaptingPredictor(reader, network=network), own, EOS)

    def replayed(text: np.ndarray) -> float:
        proposals = iter(proposals_of(reader, np.concatenate(([EOS], text))))
        predictor = AdaptingPredictor(Replayed(reader, proposals=proposals), network=network)
        return stream_nll(predictor, own, EOS)

    # Float32; calls are cut differently.
    assert replayed(own) == pytest.approx(adapted, rel=1e-5)
    assert abs(replayed(other) - adapted) > 0.1
