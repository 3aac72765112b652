"""Products of means are free of noise; the worth of an error is read off those that are known."""

import math

import numpy as np
import torch

from sglm.analyze.products import (
    cosine,
    drawings,
    gram,
    interval,
    mean_pairwise_cosine,
    products_of_means,
    worth,
)


def noisy(estimates: int, size: int, *, seed: int = 0) -> torch.Tensor:
    """Two kinds of vectors with orthogonal means of length 1 and one noise in common, ten times as
    long: `(M, 2, P)`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(estimates, size, generator=generator) * 10 / math.sqrt(size)
    means = torch.zeros(2, size)
    means[0, 0] = means[1, 1] = 1.0
    return means + noise[:, None]


def test_a_product_is_the_mean_over_pairs_of_different_estimates() -> None:
    vectors = noisy(5, 30)
    found = products_of_means(gram(vectors), drawings(5, 0))[0]
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    for k in range(2):
        for other in range(2):
            right = sum(float(vectors[i, k] @ vectors[j, other]) for i, j in pairs) / len(pairs)
            # float32 products summed in another order; they are of the size of the noise, 100
            assert abs(found[k, other] - right) < 1e-3


def test_noise_in_common_counts_for_nothing() -> None:
    """Naively both cosines would be nearly 1: the noise is ten times as long as the means."""
    estimates, size = 400, 500
    vectors = noisy(estimates, size)
    own = products_of_means(gram(vectors), drawings(estimates, 0))
    # A product's standard error: noise by noise, 100/√size a pair, over M²/2 pairs, and noise by
    # mean, 10/√size, twice over M. Four of them.
    error = 4 * (100 / math.sqrt(size) * math.sqrt(2) / estimates + 2 * 10 / math.sqrt(500 * 400))
    assert abs(own[0, 0, 0] - 1) < error
    assert abs(own[0, 0, 1]) < error
    mean = vectors.mean(0)
    assert float(torch.cosine_similarity(mean[0], mean[1], dim=0)) > 0.15  # the noise of the mean


def test_drawn_pairs_of_an_estimate_with_itself_are_left_out() -> None:
    """Else the noise would lift every drawing above the estimate itself."""
    vectors = noisy(30, 200)
    found = products_of_means(gram(vectors), drawings(30, 2000))[:, 0, 0]
    spread = found[1:].std()
    assert abs(found[1:].mean() - found[0]) < 0.1 * spread  # 2,000 drawings: four standard errors
    assert 3 * spread < 100 / 30  # which is what pairs with themselves would add
    alone = products_of_means(gram(vectors), np.eye(30)[:1])
    assert np.isnan(alone).all()


def test_the_mean_cosine_of_noisy_means_is_signal_over_signal_and_noise() -> None:
    """1 / (1 + σ²/n) for a mean of length 1 and noise of variance σ²/n."""
    estimates, size = 100, 4000
    for batches in (4, 25, 100):
        generator = torch.Generator().manual_seed(batches)
        noise = torch.randn(estimates, 1, size, generator=generator) / math.sqrt(size)
        vectors = 5 * noise / math.sqrt(batches)
        vectors[:, :, 0] += 1
        found = mean_pairwise_cosine(gram(vectors)[:, 0, :, 0], drawings(estimates, 0))[0]
        # 4,950 pairs of cosines that vary by 1/√size
        assert abs(found - 1 / (1 + 25 / batches)) < 0.02


def test_the_interval_holds_what_it_should() -> None:
    values = np.concatenate(([5.0], np.arange(1001.0)))
    assert interval(values) == [5.0, 25.0, 975.0]
    assert np.isnan(interval(np.array([1.0, math.nan, math.nan, 2.0]))[1:]).all()
    assert np.isnan(cosine(np.ones(2), np.array([-1.0, 0.0]), np.ones(2))).all()


def test_the_worth_is_the_reach_that_errs_as_much() -> None:
    """Errors that fall by a constant factor with each step, as in a linear recurrent net."""
    reaches = [0, 1, 2, 5, 10]
    errors = np.array([[0.5 ** (2 * reach)] for reach in reaches])
    for reach in reaches:
        assert worth(errors, reaches, np.array([0.5 ** (2 * reach)]))[0] == reach
    between = (0.5**4 + 0.5**10) / 2
    assert worth(errors, reaches, np.array([between]))[0] == 3.5
    assert worth(errors, reaches, np.array([2.0]))[0] == 0
    assert worth(errors, reaches, np.array([0.0]))[0] == 10
    assert math.isnan(worth(errors, reaches, np.array([math.nan]))[0])
