"""What is read off a text is what automatic differentiation of one long pass gives, in float64."""

import pytest
import torch
from torch import Tensor

from sglm.analyze.reading import (
    Reading,
    estimates,
    future_state_gradients,
    read,
    weight_gradients,
)
from sglm.dni.estimator import PlainTruncation
from sglm.model.language_model import LSTMLanguageModel
from tests.analyze.known import AHEAD, N, T, network, some_text
from tests.dni.exact import ExactEstimator

LANES, SKIPPED = 6, 5
EVERY = slice(None)


@pytest.fixture(scope="module", params=[(), (2, 4)], ids=["full", "adaptive"])
def model(request: pytest.FixtureRequest) -> LSTMLanguageModel:
    return network(cutoffs=request.param)


@pytest.fixture(scope="module")
def reading(model: LSTMLanguageModel) -> Reading:
    text = some_text(SKIPPED + N * T + AHEAD, LANES)
    return read(model, text, skipped=SKIPPED, window=T, windows=N)


def gradients_by_hand(model: LSTMLanguageModel, first: int, last: int) -> tuple[Tensor, ...]:
    """Of the nats of some of the text's steps, in the state before them, and in the LSTM."""
    text = some_text(SKIPPED + N * T + AHEAD, LANES)
    with torch.no_grad():
        before = SKIPPED + first
        _, state = model.features(text.inputs_CB[:before], model.start_state(LANES))
    leaf, own = state.as_leaf(), slice(SKIPPED + first, SKIPPED + last)
    features, _ = model.features(text.inputs_CB[own], leaf)
    nats = model.nll(features, text.targets_CB[own], reduction="none").sum()
    weights = list(model.layers.parameters())
    found = torch.autograd.grad(nats, [*leaf.hidden, *leaf.cell, *weights])
    layers = model.shape.layers
    return (
        leaf.packed(),
        torch.cat(found[: 2 * layers], dim=1),
        torch.cat([each.flatten() for each in found[2 * layers :]]),
    )


def close(left: Tensor, right: Tensor) -> None:
    """float64: the same sums in another order."""
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_the_future_is_the_exact_gradient_of_so_many_steps(
    model: LSTMLanguageModel, reading: Reading
) -> None:
    found = future_state_gradients(model, reading, [1, 2, AHEAD], windows=range(1, 3), lanes=EVERY)
    assert found.shape == (3, 2 * LANES, model.shape.state_size)
    for place, window in enumerate((1, 2)):
        after = (window + 1) * T
        for index, reach in enumerate((1, 2, AHEAD)):
            state, gradient, _ = gradients_by_hand(model, after, after + reach)
            close(reading.states_NLS[window + 1], state)
            close(found[index, place * LANES : (place + 1) * LANES], gradient)


def test_the_future_of_some_lanes_is_theirs(model: LSTMLanguageModel, reading: Reading) -> None:
    every = future_state_gradients(model, reading, [4], windows=range(2), lanes=EVERY)[0]
    some = future_state_gradients(model, reading, [4], windows=range(2), lanes=slice(2, 4))[0]
    close(some, every.view(2, LANES, -1)[:, 2:4].flatten(0, 1))


def test_windows_with_their_exact_future_add_up_to_one_long_window(
    model: LSTMLanguageModel, reading: Reading
) -> None:
    """The law of docs/algorithm.md; each window's future reaches to the end of the text."""
    total: Tensor | float = 0.0
    for window in range(N):
        to_end = (N - window - 1) * T
        own = range(window, window + 1)
        after_KLS = reading.states_NLS.new_zeros(1, LANES, model.shape.state_size)
        if to_end:
            after_KLS = future_state_gradients(model, reading, [to_end], windows=own, lanes=EVERY)
        total = total + weight_gradients(model, reading, after_KLS, windows=own, lanes=EVERY).sum(0)
    assert isinstance(total, Tensor)
    close(total, gradients_by_hand(model, 0, N * T)[2])


def test_windows_together_have_the_sum_of_their_gradients(
    model: LSTMLanguageModel, reading: Reading
) -> None:
    after_KLS = future_state_gradients(model, reading, [1, 3], windows=range(N), lanes=EVERY)
    together = weight_gradients(model, reading, after_KLS, windows=range(N), lanes=EVERY)
    alone = sum(
        weight_gradients(
            model,
            reading,
            after_KLS.view(2, N, LANES, -1)[:, window],
            windows=range(window, window + 1),
            lanes=EVERY,
        )
        for window in range(N)
    )
    assert isinstance(alone, Tensor)
    close(together, alone)


@pytest.mark.parametrize("stretch", [1, 2])
def test_an_oracle_estimates_the_future_at_every_window(
    model: LSTMLanguageModel, reading: Reading, stretch: int
) -> None:
    lookahead = 2
    found = estimates(
        model, reading, ExactEstimator(stretch=stretch), stretch=stretch, lookahead=lookahead
    )
    for window in range(N):
        beyond = (stretch - 1 - window % stretch) * T + lookahead
        own = range(window, window + 1)
        close(
            found[window],
            future_state_gradients(model, reading, [beyond], windows=own, lanes=EVERY)[0],
        )
    none = estimates(model, reading, PlainTruncation(), stretch=1, lookahead=0)
    assert none.shape == found.shape
    assert not none.any()
