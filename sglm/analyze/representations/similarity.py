"""Measures of how similar two representations, and two predictions, of the same tokens are.

Shapes: N positions, D and E units of two layers, B lanes, K classes, M some of the positions, V
vocabulary. Sums are in float64.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sglm.analyze.representations.layers import Layers, log_probabilities, rows_at_once


def linear_cka(first_ND: Tensor, second_NE: Tensor) -> float:
    """Computes the debiased linear centred kernel alignment (Kornblith et al. 2019, sec. 3).

    It is 1 if one representation is the other rotated and scaled, and about 0 if they have nothing
    in common. With the biased estimate of HSIC, two independent representations of N tokens score
    about √(D·E)/(N + √(D·E)); with the unbiased one (Song et al. 2012, eq. 5) they score 0 on
    average, sometimes slightly less. (Nguyen et al. 2021 use it for the same reason.)

    Args:
        first_ND, second_NE: Values at the same positions in the same order; any widths.

    Returns:
        The alignment; NaN if one of the representations is constant.
    """
    return alignments({"": first_ND}, {"": second_NE})[""][""]


def alignments(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Computes `linear_cka` of every layer of one model with every layer of another."""
    kernels, others = ({n: _Kernel(rows) for n, rows in each.items()} for each in (first, second))
    return {
        name: {other_name: _cka(kernel, other) for other_name, other in others.items()}
        for name, kernel in kernels.items()
    }


def _cka(one: "_Kernel", other: "_Kernel") -> float:
    own = one.own * other.own
    return one.hsic(other) / own**0.5 if own > 0 else float("nan")


def _centred(rows_ND: Tensor) -> Tensor:
    rows_ND = rows_ND.double()
    return rows_ND - rows_ND.mean(0)


class _Kernel:
    """A linear kernel matrix without its diagonal, K̃; the N×N matrix itself is never computed."""

    def __init__(self, rows_ND: Tensor) -> None:
        self.rows_ND = _centred(rows_ND)
        self.diagonal_N = self.rows_ND.square().sum(1)
        self.sums_N = self.rows_ND @ self.rows_ND.sum(0) - self.diagonal_N  # K̃1

    @cached_property
    def own(self) -> float:
        return self.hsic(self)

    def hsic(self, other: "_Kernel") -> float:
        """Returns n(n−3) times the unbiased HSIC of two kernels K̃ and L̃.

        It is tr K̃L̃ + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1.
        """
        count = len(self.rows_ND)
        trace = (self.rows_ND.T @ other.rows_ND).square().sum() - self.diagonal_N @ other.diagonal_N
        sums = self.sums_N.sum() * other.sums_N.sum() / ((count - 1) * (count - 2))
        return float(trace + sums - 2 / (count - 2) * (self.sums_N @ other.sums_N))


class TopDirection(NamedTuple):
    """Properties of a layer's first principal direction, in which its states differ most.

    Attributes:
        share: The direction's share of the variance; if it is large, CKA compares little else.
        persistence: Correlation of a state's component along the direction with that of the
            state `lag` positions later: near 1, the direction is a memory. NaN if lanes are no
            longer than `lag`.
    """

    share: float
    persistence: float


def top_direction(rows_ND: Tensor, *, lanes: int, lag: int) -> TopDirection:
    """Measures the first principal direction of a layer.

    Args:
        rows_ND: Values of the layer, lane after lane.
        lanes: Number of lanes.
        lag: Distance over which persistence is measured, in positions.
    """
    vectors_ND, values_D, _ = torch.linalg.svd(_centred(rows_ND), full_matrices=False)
    part_BE = vectors_ND[:, 0].view(lanes, -1)
    two = torch.stack((part_BE[:, :-lag].flatten(), part_BE[:, lag:].flatten()))
    squares_D = values_D.square()
    return TopDirection(
        share=float(squares_D[0] / squares_D.sum()),
        persistence=float(torch.corrcoef(two)[0, 1]) if two.shape[1] > 1 else float("nan"),
    )


def dissimilarities(rows_MD: Tensor) -> Tensor:
    """Computes the representational dissimilarity matrix (Kriegeskorte et al. 2008).

    Returns:
        `(M, M)`: 1 − the correlation of the units' values at two positions; zero on the diagonal.
    """
    unit_MD = _unit_rows(rows_MD)
    matrix_MM = 1 - unit_MD @ unit_MD.T
    return matrix_MM.fill_diagonal_(0)


def _unit_rows(rows_MD: Tensor) -> Tensor:
    """Subtracts its mean from each row and scales it to length 1; constant rows become zero."""
    rows_MD = rows_MD.double()
    rows_MD = rows_MD - rows_MD.mean(1, keepdim=True)
    return torch.nn.functional.normalize(rows_MD, dim=1)


def rdm_correlation(first_MM: Tensor, second_MM: Tensor) -> float:
    """Returns Pearson's correlation of two dissimilarity matrices, over all pairs of positions."""
    above = torch.triu_indices(len(first_MM), len(first_MM), offset=1)
    pairs = torch.stack([matrix[above[0], above[1]] for matrix in (first_MM, second_MM)])
    return float(torch.corrcoef(pairs)[0, 1])


def class_dissimilarities(rows_ND: Tensor, classes_N: Tensor) -> Tensor:
    """Averages the dissimilarity matrix of all positions over the positions of each class.

    Returns:
        `(K, K)`: The mean dissimilarity between a position of one class and a different position
        of the other class.
    """
    unit_ND, classes = _unit_rows(rows_ND), int(classes_N.max()) + 1
    counts_K = torch.bincount(classes_N, minlength=classes).double()
    sums_KD = unit_ND.new_zeros(classes, unit_ND.shape[1]).index_add(0, classes_N, unit_ND)
    own_K = sums_KD.new_zeros(classes).index_add(0, classes_N, unit_ND.square().sum(1))
    inner_KK = sums_KD @ sums_KD.T - own_K.diag()  # a position is not compared with itself
    pairs_KK = counts_K[:, None] * counts_K - counts_K.diag()
    return 1 - inner_KK / pairs_KK


def class_contrast(matrix_KK: Tensor) -> float:
    """Returns the mean dissimilarity between two classes less that within one class."""
    classes = len(matrix_KK)
    within = matrix_KK.diag().mean()
    between = (matrix_KK.sum() - matrix_KK.diag().sum()) / (classes * (classes - 1))
    return float(between - within)


class Difference(NamedTuple):
    """The difference of two models' predictions over the sample.

    Attributes:
        kl_nats: Mean Kullback–Leibler divergence, averaged over both directions.
        agreement: Share of the positions at which both models find the same token most probable.
    """

    kl_nats: float
    agreement: float


def prediction_difference(first: Layers, second: Layers) -> Difference:
    """Measures the difference of the predictions of two models that read the same sample."""
    rows = min(rows_at_once(first.model), rows_at_once(second.model))
    both_ways, same = 0.0, 0
    for first_MV, second_MV in zip(
        log_probabilities(first, rows), log_probabilities(second, rows), strict=True
    ):
        # KL(p‖q) + KL(q‖p) = Σ (p − q)(log p − log q)
        gap_MV = (first_MV.exp() - second_MV.exp()) * (first_MV - second_MV)
        both_ways += float(gap_MV.double().sum())
        same += int((first_MV.argmax(1) == second_MV.argmax(1)).sum())
    count = len(first.features_NH)
    return Difference(kl_nats=both_ways / 2 / count, agreement=same / count)
