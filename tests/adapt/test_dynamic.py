"""Dynamic evaluation against a loop written out by hand, with gradients of a plain network."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sglm.adapt.dynamic import DynamicReader
from sglm.adapt.gradients import EPSILON, GradientSizes, gradient_sizes, rms_rule
from sglm.adapt.reader import AdaptingPredictor
from sglm.errors import InputError
from sglm.scoring.stream import read_on
from tests.adapt.readers import EOS, VOCABULARY, make_rule
from tests.tiny_models import make_network, plain_nlls


def mean_loss(network: torch.nn.Module, ids: torch.Tensor, state: object) -> tuple:
    features_T1H, after = network.features(ids[:-1, None], state)
    return F.cross_entropy(network.logits(features_T1H[:, 0]), ids[1:]), after


@pytest.mark.parametrize("rule_name", ["sgd", "rms"])
def test_is_predict_then_learn(rule_name: str) -> None:
    segment, network = 5, make_network(VOCABULARY)
    rule = make_rule(network, rule_name)
    ids = torch.from_numpy(np.random.default_rng(4).integers(0, VOCABULARY, 38))
    trained = copy.deepcopy(network)
    own, state, expected = copy.deepcopy(network), network.start_state(1), []
    for start in range(0, len(ids) - 1, segment):
        window = ids[start : start + segment + 1]
        with torch.no_grad():
            features_T1H, after = own.features(window[:-1, None], state)
            expected += own.nll(features_T1H, window[1:, None], reduction="none").flatten().tolist()
        loss, _ = mean_loss(own, window, state)
        gradients = torch.autograd.grad(loss, list(own.parameters()))
        with torch.no_grad():
            for index, (weight, gradient, old) in enumerate(
                zip(own.parameters(), gradients, trained.parameters(), strict=True)
            ):
                back = rule.pull[index] * (old - weight)
                weight += back - rule.learning_rate * gradient / rule.scale[index]
        state = after
    predictor = AdaptingPredictor(
        DynamicReader(network, segment=segment, rule=rule), network=network
    )
    nlls, _ = read_on(predictor, ids.numpy(), predictor.start(1))
    # Float32; products of other sizes round differently, seven updates add up.
    np.testing.assert_allclose(nlls, expected, rtol=1e-4)
    assert not np.allclose(nlls, plain_nlls(network, ids.tolist()), rtol=1e-2)


def test_sizes_are_root_mean_squares_of_segments_of_the_training_text() -> None:
    network = make_network(VOCABULARY)
    text = np.random.default_rng(5).integers(0, VOCABULARY, 12).astype(np.uint16)
    sizes = gradient_sizes(network, text, bos_id=EOS, segment=4)
    # One lane, as the text is short: three segments.
    ids, state, squares = torch.tensor([EOS, *text.tolist()]), network.start_state(1), 0.0
    for start in (0, 4, 8):
        loss, after = mean_loss(network, ids[start : start + 5], state)
        (gradient,) = torch.autograd.grad(loss, [network.softmax_bias])
        squares, state = squares + gradient**2, after.detach()
    names = [name for name, _ in network.named_parameters()]
    found = sizes.roots[names.index("softmax_bias")]
    torch.testing.assert_close(found, (squares / 3).sqrt(), rtol=1e-4, atol=1e-7)


def test_a_text_as_long_as_a_segment_is_too_short_to_measure_sizes() -> None:
    text = np.arange(4, dtype=np.uint16)
    with pytest.raises(InputError, match="more than 4 tokens, but it has 4; take a shorter one"):
        gradient_sizes(make_network(VOCABULARY), text, bos_id=EOS, segment=4)


def test_the_rms_rule_scales_steps_and_caps_the_way_back() -> None:
    """Two parameters, whose gradients are usually 1 and 3."""
    sizes = GradientSizes((torch.tensor([1.0]), torch.tensor([3.0])))
    rule = rms_rule(sizes, learning_rate=0.1, decay=0.8)
    assert [scale.item() for scale in rule.scale] == pytest.approx(
        [1 + 2 * EPSILON, 3 + 2 * EPSILON]
    )
    assert [pull.item() for pull in rule.pull] == pytest.approx([0.4, 1.0])


def test_every_parameter_counts_as_much_in_the_mean_however_many_weights_it_has() -> None:
    sizes = GradientSizes((torch.tensor([1.0]), torch.full((2, 3), 5.0)))
    assert sizes.mean.item() == 3.0
