"""The mean of a model's weights: which steps are in it, and how much they count."""

import pytest
import torch

from sglm.model.language_model import LSTMLanguageModel
from sglm.optim.averaging import EVERY_STEPS, WeightAverage
from tests.tiny_models import make_network


def set_weights(model: LSTMLanguageModel, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_there_is_no_mean_before_weights_were_taken_in() -> None:
    model = make_network(5)
    average = WeightAverage(model, memory=0.1)
    for step in range(1, EVERY_STEPS):
        average.update(model, step)
        assert average.model is None
    average.update(model, EVERY_STEPS)
    assert average.model is not None
    assert torch.equal(average.model.embedding, model.embedding)


@pytest.mark.parametrize("memory", [0.1, 0.5])
def test_the_mean_reaches_back_a_fraction_of_the_run(memory: float) -> None:
    """Weights that grow by 1 at every step: the mean is about as many steps behind."""
    model, steps = make_network(5), 400 * EVERY_STEPS
    average = WeightAverage(model, memory=memory)
    for step in range(1, steps + 1):
        if step % EVERY_STEPS == 0:
            set_weights(model, float(step))
        average.update(model, step)
    assert average.model is not None
    behind = 1 - average.model.softmax_bias[0].item() / steps
    # With weights t and shares 1 / (f·t) the mean tends to t / (1 + f).
    assert behind == pytest.approx(memory / (1 + memory), rel=0.05)


def test_it_goes_on_from_a_checkpoint() -> None:
    whole, parts = (WeightAverage(make_network(5), memory=0.3) for _ in range(2))
    model = make_network(5)
    for step in range(EVERY_STEPS, 20 * EVERY_STEPS, EVERY_STEPS):
        set_weights(model, float(step % 7))
        whole.update(model, step)
        parts.update(model, step)
        saved = {key: each.clone() for key, each in parts.state_dict().items()}
        parts = WeightAverage(make_network(5, seed=1), memory=0.3)
        parts.load_state_dict(saved)
    assert whole.model is not None
    assert parts.model is not None
    assert torch.equal(whole.model.embedding, parts.model.embedding)


def test_early_in_a_run_the_newest_weights_count_alone() -> None:
    """As long as the fraction of the weights taken in is less than one of them."""
    model, average = make_network(5), WeightAverage(make_network(5), memory=0.1)
    for taken in range(1, 11):
        set_weights(model, float(taken))
        average.update(model, taken * EVERY_STEPS)
        assert average.model is not None
        assert torch.equal(average.model.embedding, model.embedding), taken
