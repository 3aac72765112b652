"""A tiny network that adapts in every way, for the laws that all of them keep."""

import torch

from sglm.adapt.cache import CacheReader
from sglm.adapt.dynamic import DynamicReader, Rule
from sglm.adapt.gradients import GradientSizes, rms_rule, sgd_rule
from sglm.adapt.reader import AdaptingPredictor, LaneReader, StaticReader
from sglm.adapt.synthetic import GradientsShape, SyntheticGradients, SyntheticReader
from sglm.model.language_model import LSTMLanguageModel
from tests.tiny_models import make_network

VOCABULARY, EOS = 23, 5
WAYS = ("cache", "sgd", "rms", "synthetic", "cache, sgd")


def make_rule(network: LSTMLanguageModel, name: str) -> Rule:
    if name == "sgd":
        return sgd_rule(network, learning_rate=0.5, decay=0.1)
    random = torch.Generator().manual_seed(1)
    roots = [0.1 + torch.rand(w.shape, generator=random) for w in network.parameters()]
    return rms_rule(GradientSizes(tuple(roots)), learning_rate=0.3, decay=0.2)


def make_gradients(network: LSTMLanguageModel, *, steps: int = 2) -> SyntheticGradients:
    """Of random weights: whatever is proposed, the laws hold."""
    shape = GradientsShape(
        vocab_size=VOCABULARY,
        features=network.shape.widths[-1],
        steps=steps,
        segment=7,
        horizons=(10.0, 50.0),
        hidden=4,
    )
    random = torch.Generator().manual_seed(2)
    gradients = SyntheticGradients(shape).requires_grad_(False)
    for parameter in gradients.parameters():
        parameter.normal_(std=0.2, generator=random)
    return gradients


def make_reader(network: LSTMLanguageModel, way: str) -> LaneReader:
    if way == "synthetic":
        return SyntheticReader(network, gradients=make_gradients(network))
    reader: LaneReader = StaticReader(network)
    if "sgd" in way or "rms" in way:
        reader = DynamicReader(network, segment=5, rule=make_rule(network, way[-3:]))
    if "cache" in way:
        features = network.shape.widths[-1]
        reader = CacheReader(reader, features=features, size=12, weight=0.3, sharpness=0.7)
    return reader


def make_adapting(way: str, network: LSTMLanguageModel | None = None) -> AdaptingPredictor:
    network = network or make_network(VOCABULARY)
    return AdaptingPredictor(make_reader(network, way), network=network)
