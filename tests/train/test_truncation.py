"""Random truncation with compensation: unbiased, and nothing else changes."""

import itertools
import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from sglm.model.state import LSTMState
from sglm.optim.schedule import Mode, StepPlan
from sglm.train.truncation import (
    compensated_outputs,
    draw_lengths,
    part_steps,
    truncation_probability,
)
from sglm.train.window_pass import WindowPass
from tests.train.test_step import B, gradients, make_learner, take_step, windows

WINDOWS = [2, 4, 5, 9, 20, 35]
STILL = StepPlan(0.0, Mode.REAL, 0)  # rate zero: look at gradients, move nothing


def survivals(window: int, parts: int) -> list[float]:
    """Probabilities that a window is longer than 0, 1, … parts."""
    kept = [1.0]
    for part in range(1, parts):
        kept.append(kept[-1] * (1 - truncation_probability(part, window)))
    return kept


@pytest.mark.parametrize("window", WINDOWS)
def test_windows_have_the_mean_length_by_the_formula(window: int) -> None:
    """The mean of a count is the sum of the probabilities to be longer than 0, 1, …"""
    mean_parts = math.fsum(survivals(window, 10_000))  # they fall with the fifth power
    assert mean_parts * part_steps(window) == pytest.approx(window, rel=1e-9)


@pytest.mark.parametrize("window", WINDOWS)
def test_drawn_windows_have_the_mean_length_and_the_drawn_frequencies(window: int) -> None:
    unit, count = part_steps(window), 20_000
    lengths = draw_lengths(count * window, window, seed=3)[:-50]  # the lane's end cuts the last
    longest = max(lengths) // unit
    kept = survivals(window, longest + 1)
    mean = sum(lengths) / len(lengths)
    variance = sum((length - mean) ** 2 for length in lengths) / len(lengths)
    # Four standard errors; and long ones are cut, which takes less than a hundredth off the mean.
    tolerance = 4 * math.sqrt(variance / len(lengths))
    assert window * 0.99 - tolerance < mean < window + tolerance
    frequencies = Counter(length // unit for length in lengths)
    for parts in range(1, longest):
        probability = kept[parts - 1] - kept[parts]
        error = math.sqrt(probability / len(lengths))
        # five standard errors, as there are dozens of lengths; a few counts where they are rare
        slack = 5 * error + 5 / len(lengths)
        assert abs(frequencies[parts] / len(lengths) - probability) < slack


@pytest.mark.parametrize("lane_length", [35, 36, 100, 9999])
@pytest.mark.parametrize("window", [1, *WINDOWS])
def test_drawn_windows_are_whole_parts_and_fit_the_lane(window: int, lane_length: int) -> None:
    unit = part_steps(window)
    for seed in range(5):
        lengths = draw_lengths(lane_length, window, seed)
        assert all(length > 0 and length % unit == 0 for length in lengths)
        assert lane_length - unit < sum(lengths) <= lane_length
        assert lengths == draw_lengths(lane_length, window, seed)
    if window > 1 and lane_length > 100:
        assert draw_lengths(lane_length, window, 0) != draw_lengths(lane_length, window, 1)


def test_compensation_changes_no_value() -> None:
    model = make_learner().model
    embedded_TBE, _ = model.embed(windows(1, 12)[0].inputs_TB)
    state = model.start_state(B)
    plain, _ = model.outputs(embedded_TBE, state)
    outputs_TBH, outgoing = compensated_outputs(model, embedded_TBE, state, window=12)
    parts = []
    for part in torch.split(embedded_TBE, part_steps(12)):
        part_TBH, state = model.outputs(part, state)
        parts.append(part_TBH)
    assert torch.equal(outputs_TBH, torch.cat(parts))
    assert torch.equal(outgoing.packed(), state.packed())
    # float64: torch's own loop over the steps is the same, whether called once or in parts
    torch.testing.assert_close(outputs_TBH, plain, rtol=1e-12, atol=1e-12)


def test_each_distance_is_compensated_for_the_chance_to_be_cut_before() -> None:
    """The factor on what a step sends back over so many parts, times the probability that a
    window reaches that far, is one."""
    window = 8
    unit, parts = part_steps(window), 6
    model = make_learner().model
    embedded_TBE, _ = model.embed(windows(1, unit * parts)[0].inputs_TB)
    leaf = model.start_state(B).as_leaf()
    full, _ = model.outputs(embedded_TBE, leaf)
    compensated, _ = compensated_outputs(model, embedded_TBE, leaf, window=window)
    kept = survivals(window, parts)
    for part in range(parts):
        at = (part + 1) * unit - 1
        straight, scaled = (
            torch.autograd.grad(each[at].sum(), leaf.hidden[0], retain_graph=True)[0]
            for each in (full, compensated)
        )
        # float64, products of a few factors
        torch.testing.assert_close(scaled * kept[part], straight, rtol=1e-9, atol=1e-15)


def test_the_gradient_is_unbiased_over_all_truncations() -> None:
    """Every way to cut a segment, weighted by its probability: the mean is the full gradient."""
    window, parts = 4, 6
    unit = part_steps(window)
    inputs_TB, targets_TB, *_ = windows(1, unit * parts)[0]
    learner = make_learner()
    model, parameters = learner.model, list(learner.model.parameters())

    def gradient(cuts: list[int]) -> list[Tensor]:
        """Of the nats of the segment, truncated after those parts."""
        state: LSTMState = model.start_state(B)
        nll = torch.zeros((), dtype=torch.float64)
        bounds = [0, *(cut * unit for cut in cuts), parts * unit]
        for first, last in itertools.pairwise(bounds):
            embedded_TBE, _ = model.embed(inputs_TB[first:last])
            outputs_TBH, state = compensated_outputs(
                model, embedded_TBE, state.detach(), window=window
            )
            nll = nll + model.nll(outputs_TBH, targets_TB[first:last])
        return list(torch.autograd.grad(nll, parameters))

    expected = [torch.zeros_like(each) for each in parameters]
    total = 0.0
    for pattern in itertools.product((False, True), repeat=parts - 1):
        probability, part = 1.0, 1
        for cut in pattern:
            chance = truncation_probability(part, window)
            probability *= chance if cut else 1 - chance
            part = 1 if cut else part + 1
        total += probability
        cuts = [index + 1 for index, cut in enumerate(pattern) if cut]
        for mean, each in zip(expected, gradient(cuts), strict=True):
            mean += probability * each
    assert total == pytest.approx(1.0, rel=1e-12)
    features_TBH, _ = model.features(inputs_TB, model.start_state(B))
    full = torch.autograd.grad(model.nll(features_TBH, targets_TB), parameters)
    biased = gradient(list(range(1, parts)))
    for found, right in zip(expected, full, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-12)  # float64 sums
    assert max((a - b).abs().max() for a, b in zip(biased, full, strict=True)) > 1e-3


def test_every_token_weighs_the_same_however_long_its_window() -> None:
    """A step's gradient is that of its nats over the mean window: short ones do not count more."""
    mean = 4
    for length in (1, 4, 7):
        (window,), learner = windows(1, length), make_learner()
        learner.random_window = mean
        learner.window_pass = WindowPass(learner.model, random_window=mean)
        result = take_step(learner, window, STILL, 0)
        assert result.tokens == length * B
        model = learner.model
        embedded_TBE, _ = model.embed(window.inputs_TB)
        outputs_TBH, _ = compensated_outputs(model, embedded_TBE, model.start_state(B), window=mean)
        nll = model.nll(outputs_TBH, window.targets_TB)
        assert torch.equal(result.nll_nats, nll.detach())
        right = torch.autograd.grad(nll / (mean * B), list(model.parameters()))
        for found, each in zip(gradients(learner), right, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-10, atol=1e-12)  # float64 sums
