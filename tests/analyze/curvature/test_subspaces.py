"""Overlaps of spaces and ranks of reshaped vectors, where they are known."""

import json

import numpy as np
import numpy.typing as npt

from sglm.analyze.curvature.subspaces import (
    overlaps,
    packed,
    random_rank_one_share,
    rank_one_shares,
    unpacked,
)

DICE = np.random.default_rng(0)


def random_rows(count: int, size: int) -> npt.NDArray[np.float64]:
    """Orthonormal, in all directions alike."""
    return np.linalg.qr(DICE.standard_normal((size, count)))[0].T


def test_a_space_overlaps_with_itself_entirely_whatever_its_basis() -> None:
    rows = random_rows(4, 30)
    turned = random_rows(4, 4) @ rows
    assert np.allclose(overlaps(rows, rows), 1)
    assert np.isclose(overlaps(rows, turned)[-1], 1)
    assert not np.allclose(overlaps(rows, turned)[:-1], 1)
    others = random_rows(8, 30)
    assert np.allclose(overlaps(others[:4], others[4:]), 0)


def test_half_a_space_in_common() -> None:
    rows = random_rows(6, 30)
    assert np.allclose(overlaps(rows[:4], rows[[0, 1, 4, 5]]), [1, 1, 2 / 3, 1 / 2])


def test_unrelated_spaces_overlap_by_k_over_n() -> None:
    size, count, trials = 50, 5, 400
    found = [overlaps(random_rows(count, size), random_rows(count, size)) for _ in range(trials)]
    # The standard deviation of one is below 0.04, that of the mean 0.002; four of them.
    assert np.allclose(np.mean(found, 0)[-1], count / size, atol=0.008)


def test_a_planted_outer_product_is_found() -> None:
    left, right = random_rows(3, 12), random_rows(3, 5)
    outer = np.einsum("ko,ki->koi", left, right).reshape(3, -1)
    mixed = (3 * outer[0] + 4 * outer[1]) / 5
    shares = rank_one_shares(np.stack([outer[0], mixed]), (12, 5))
    assert np.allclose(shares, [1, 16 / 25])
    # Reshaped the other way it is none.
    assert rank_one_shares(outer[:1], (5, 12))[0] < 0.95


def test_a_random_vector_has_the_share_of_its_shape() -> None:
    shares = rank_one_shares(random_rows(5, 80 * 40), (80, 40))
    # Its size is that of the limit of large matrices; at this one it is up to 12 % less.
    assert np.allclose(shares, random_rank_one_share((80, 40)), rtol=0.15)


def test_packing_keeps_directions() -> None:
    rows = random_rows(3, 1000) * 1e-3
    back = unpacked(json.loads(json.dumps(packed(rows))))
    assert back.shape == rows.shape
    assert np.allclose(back, rows, rtol=1e-3, atol=1e-8)  # float16: 11 bits of the largest's scale
    assert unpacked(packed(np.zeros((2, 2)))).tolist() == [[0, 0], [0, 0]]
