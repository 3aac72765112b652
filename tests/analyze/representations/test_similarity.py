"""Similarities of representations and predictions, where they are known."""

import math

import pytest
import torch
from torch import Tensor

from sglm.analyze.representations.layers import Layers, log_probabilities
from sglm.analyze.representations.similarity import (
    class_contrast,
    class_dissimilarities,
    dissimilarities,
    linear_cka,
    prediction_difference,
    rdm_correlation,
    top_direction,
)
from tests.tiny_models import make_network

EXACT = 1e-9  # float64's rounding, of sums of some thousands


def random_rows(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


def test_a_rotated_scaled_and_moved_representation_is_the_same() -> None:
    rows_ND = random_rows(60, 8, seed=0) * torch.arange(1, 9)
    rotation_DD = torch.linalg.qr(random_rows(8, 8, seed=1)).Q
    moved_ND = 3 * rows_ND @ rotation_DD + 100
    assert linear_cka(rows_ND, moved_ND) == pytest.approx(1, abs=EXACT)
    assert linear_cka(rows_ND, rows_ND[:, :4]) < 1 - 0.1  # half of it is not all of it
    assert math.isnan(linear_cka(rows_ND, torch.ones(60, 3)))


def test_independent_representations_have_nothing_in_common() -> None:
    # With 200 units and 300 positions the biased estimate would be 0.4.
    values = [
        linear_cka(random_rows(300, 200, seed=seed), random_rows(300, 200, seed=seed + 100))
        for seed in range(5)
    ]
    # Each has a standard deviation of about √2/300, relative to 200/300 of its own.
    assert max(map(abs, values)) < 0.03


def test_cka_is_that_of_its_definition() -> None:
    """Song et al. 2012, eq. 5, with the matrices themselves; any widths."""
    count = 12
    first, second = random_rows(count, 3, seed=0), random_rows(count, 5, seed=1)
    second[:, 0] += first[:, 0]

    def hsic(one: Tensor, other: Tensor) -> float:
        k, l = ((x @ x.T).fill_diagonal_(0) for x in (one, other))
        terms = (k @ l).trace() + k.sum() * l.sum() / (count - 1) / (count - 2)
        return float(terms - 2 / (count - 2) * (k @ l).sum()) / count / (count - 3)

    right = hsic(first, second) / math.sqrt(hsic(first, first) * hsic(second, second))
    assert linear_cka(first, second) == pytest.approx(right, abs=EXACT)
    assert 0.1 < right < 0.9


def test_dissimilarity_matrices() -> None:
    rows_MD = random_rows(20, 6, seed=0)
    matrix_MM = dissimilarities(rows_MD)
    assert bool((matrix_MM.diag() == 0).all())
    torch.testing.assert_close(matrix_MM, matrix_MM.T)
    right = 1 - torch.corrcoef(rows_MD[:2])[0, 1]
    assert float(matrix_MM[0, 1]) == pytest.approx(float(right), abs=EXACT)
    # What each position's values are scaled and moved by, and the order of units, are not seen.
    other_MM = dissimilarities((5 * rows_MD + torch.arange(20)[:, None])[:, torch.randperm(6)])
    torch.testing.assert_close(other_MM, matrix_MM)
    assert rdm_correlation(matrix_MM, 2 * matrix_MM + 1) == pytest.approx(1, abs=EXACT)
    unrelated_MM = dissimilarities(random_rows(20, 6, seed=1))
    assert abs(rdm_correlation(matrix_MM, unrelated_MM)) < 0.3  # 4 / √190 pairs


def test_dissimilarity_of_classes_is_a_mean_over_pairs() -> None:
    rows_ND, classes_N = random_rows(12, 5, seed=0), torch.tensor([0, 1, 2] * 4)
    rows_ND[:, 0] += 3 * classes_N
    matrix_NN, found_KK = dissimilarities(rows_ND), class_dissimilarities(rows_ND, classes_N)
    for one in range(3):
        for other in range(3):
            pairs = [
                float(matrix_NN[i, j])
                for i in range(12)
                for j in range(12)
                if i != j and (classes_N[i], classes_N[j]) == (one, other)
            ]
            mean = sum(pairs) / len(pairs)
            assert float(found_KK[one, other]) == pytest.approx(mean, abs=EXACT)
    assert class_contrast(found_KK) > 0.1
    assert class_contrast(torch.ones(3, 3)) == 0


def test_the_difference_of_predictions_is_the_mean_divergence() -> None:
    def layers(seed: int) -> Layers:
        model = make_network(9, seed=seed).double()
        return Layers(model=model, by_name={}, features_NH=random_rows(7, 8, seed=seed + 5))

    first, second = layers(0), layers(1)
    p_NV, q_NV = (next(iter(log_probabilities(each))) for each in (first, second))
    divergence = torch.nn.functional.kl_div
    right = sum(
        float(divergence(one, other, reduction="batchmean", log_target=True))
        for one, other in ((p_NV, q_NV), (q_NV, p_NV))
    )
    found = prediction_difference(first, second)
    assert found.kl_nats == pytest.approx(right / 2, abs=EXACT)
    assert found.agreement == float((p_NV.argmax(1) == q_NV.argmax(1)).double().mean())
    assert prediction_difference(first, first) == (0, 1)


def test_the_top_direction_and_how_long_it_lasts() -> None:
    lanes, each = 4, 200
    rows_ND = random_rows(lanes * each, 6, seed=0)
    brief = top_direction(rows_ND, lanes=lanes, lag=5)
    assert brief.share < 0.25  # about a sixth
    assert abs(brief.persistence) < 4 / math.sqrt(lanes * each)
    # A slow wave, another in each lane, along one direction: of variance 18 beside 6.
    steps_E = torch.arange(each, dtype=torch.float64)
    waves = torch.stack([(steps_E / 40 * math.pi + lane).sin() for lane in range(lanes)]).flatten()
    rows_ND += 6 * waves[:, None] * torch.linalg.qr(random_rows(6, 1, seed=1)).Q.T
    slow = top_direction(rows_ND, lanes=lanes, lag=5)
    assert slow.share == pytest.approx(19 / 24, abs=0.05)
    # An eighth of π on: its cosine, of 18 in 19.
    assert slow.persistence == pytest.approx(math.cos(math.pi / 8) * 18 / 19, abs=0.03)
    assert math.isnan(top_direction(rows_ND, lanes=lanes, lag=each).persistence)
