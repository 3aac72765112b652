"""A critic's values compared with the observed ones."""

import math

import numpy as np
import pytest
import torch

from sglm.analyze.gradients.values import (
    agreement_of_values,
    compare_values,
    discounted_nats,
    value_steps,
)
from sglm.analyze.reading import read
from sglm.dni.critic import Critic, CriticEstimator
from tests.analyze.known import N, T, network, some_text

LANES, DISCOUNT = 5, 0.8


def test_values_that_know_all_explain_all() -> None:
    observed = np.random.default_rng(0).normal(size=(8, 40))
    right = agreement_of_values(observed, observed)
    assert right["explained"] == pytest.approx([1, 1, 1])
    assert right["correlation"] == pytest.approx([1, 1, 1])
    half = agreement_of_values(observed.mean() + (observed - observed.mean()) / 2, observed)
    assert half["explained"][0] == pytest.approx(0.75)
    assert half["slope"] == pytest.approx([2, 2, 2])
    mean = agreement_of_values(np.full_like(observed, observed.mean()), observed)
    assert mean["explained"][0] == pytest.approx(0, abs=1e-12)
    assert math.isnan(mean["correlation"][0])


def test_the_future_loss_is_the_discounted_sum_of_windows() -> None:
    model, text = network(), some_text(N * T + value_steps(T), LANES)
    reading = read(model, text, skipped=0, window=T, windows=N)
    found = discounted_nats(model, reading, DISCOUNT)
    features, _ = model.features(text.inputs_CB, model.start_state(LANES))
    nats = model.nll(features, text.targets_CB, reduction="none").detach()
    by_window = nats.view(-1, T, LANES).sum(1).numpy()
    ahead = value_steps(T) // T
    rest = by_window.mean() * DISCOUNT**ahead / (1 - DISCOUNT)
    for window in range(N):
        weights = DISCOUNT ** np.arange(ahead)
        right = weights @ by_window[window + 1 : window + 1 + ahead] + rest
        np.testing.assert_allclose(found[window], right, rtol=1e-10)  # float64


def test_a_critics_derivative_is_compared_with_the_exact_gradient() -> None:
    """Of a linear critic, whose derivative is its weight everywhere."""
    model = network()
    reading = read(model, some_text(N * T + value_steps(T), LANES), skipped=0, window=T, windows=N)
    critic = Critic(model.shape.state_size, 4, discount=DISCOUNT)
    torch.nn.init.normal_(critic.linear.weight, generator=torch.Generator().manual_seed(0))
    estimator = CriticEstimator(model, critic=critic)
    found = compare_values(model, reading, estimator, reaches=[1, 2])
    assert [each["reach"] for each in found["derivative"]] == [1, 2]
    for each in found["derivative"]:
        assert abs(each["cosine"][0]) < 0.5  # it has learned nothing
        right = 1 - each["cosine"][0] ** 2  # what the best multiple leaves
        assert each["error"][0] >= right - 1e-9
    assert found["predicted_sd"][0] > 0
