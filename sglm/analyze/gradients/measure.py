"""Measurements on a run's gradients: sums over a text, then numbers with intervals.

The text is cut into M disjoint parts, each read in lanes as in training; each part gives an
independent estimate of the mean gradients. Weights are fixed; there are no dropout and no
penalties.

Shapes: M parts of B lanes each, L = M·B, T steps of a window, N windows of a lane, R reaches, K
kinds of added gradients (the reaches, then the synthetic one), P weights of the LSTM layers, S
coordinates of a state, Q parts of a state (the hidden state of each layer, then the cell state of
each), W drawings of the bootstrap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.products import (
    Array,
    cosine,
    drawings,
    gram,
    interval,
    mean_pairwise_cosine,
    products_of_means,
    worth,
)
from sglm.analyze.reading import Reading, future_state_gradients, weight_gradients
from sglm.model.language_model import LSTMLanguageModel

TRUNCATED, LONG, SYNTHETIC = "truncated", "long", "synthetic"
_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Inner products of gradients that were summed over windows.

    Attributes:
        reaches: The reaches r, ascending; the last one is the long horizon's.
        batches: Number of windows of B lanes that each part had summed, for each of `grams`.
        grams: Inner products `(M, 1 + K, M, 1 + K)` of the parts' summed weight gradients: that of
            the windows' own nats, then the contribution of each added state gradient.
        states_LQKK: Inner products of the added state gradients, by lane and part of a state.
        parts: The names of the parts of a state.
        has_synthetic: Whether the last of the K kinds is the synthetic gradient.
    """

    reaches: list[int]
    batches: list[int]
    grams: list[Array]
    states_LQKK: Array
    parts: list[str]
    has_synthetic: bool


def sum_gradients(
    model: LSTMLanguageModel,
    reading: Reading,
    reaches: Sequence[int],
    *,
    synthetic_NLS: Tensor | None,
    lanes: int,
) -> Sums:
    """Sums gradients over all windows; takes inner products after 1, 2, 4, … and all windows.

    Args:
        model, reading: The model and its reading of the text.
        reaches: The reaches r of the exact state gradients, ascending.
        synthetic_NLS: The estimates that would be injected after each window, or None.
        lanes: B; the reading has M·B lanes.
    """
    parts = reading.inputs_CL.shape[1] // lanes
    kinds = len(reaches) + (synthetic_NLS is not None)
    size = sum(weight.numel() for weight in model.layers.parameters())
    vectors_MKP = torch.zeros(parts, 1 + kinds, size)
    widths = 2 * model.shape.widths
    states_LQKK = np.zeros((parts * lanes, len(widths), kinds, kinds))
    batches, grams = [], []
    for windows, takes_products in _doubling(reading.windows):
        for part in range(parts):
            own = slice(part * lanes, (part + 1) * lanes)
            after_KLS = future_state_gradients(model, reading, reaches, windows=windows, lanes=own)
            if synthetic_NLS is not None:
                estimated_LS = synthetic_NLS[windows.start : windows.stop, own].flatten(0, 1)
                after_KLS = torch.cat((after_KLS, estimated_LS[None]))
            states_LQKK[own] += _state_products(after_KLS, widths, lanes=lanes)
            vectors_MKP[part] += weight_gradients(
                model, reading, after_KLS, windows=windows, lanes=own
            )
        if takes_products:
            batches.append(windows.stop)
            grams.append(gram(vectors_MKP))
    names = [f"{kind} {n + 1}" for kind in ("hidden", "cell") for n in range(model.shape.layers)]
    return Sums(
        reaches=[*reaches],
        batches=batches,
        grams=grams,
        states_LQKK=states_LQKK,
        parts=names,
        has_synthetic=synthetic_NLS is not None,
    )


def _doubling(windows: int) -> list[tuple[range, bool]]:
    """Returns pieces of all windows, each with whether 1, 2, 4, … or all windows end with it."""
    pieces, done = [], 0
    while done < windows:
        end = min(max(1, 2 * done), windows)
        for start in range(done, end, _WINDOWS_AT_ONCE):
            stop = min(start + _WINDOWS_AT_ONCE, end)
            pieces.append((range(start, stop), stop == end))
        done = end
    return pieces


def _state_products(after_KLS: Tensor, widths: Sequence[int], *, lanes: int) -> Array:
    """Returns inner products `(lanes, Q, K, K)`, summed over the windows of each lane.

    Args:
        after_KLS: State gradients, with the lanes of each window side by side.
        widths: The width of each of the Q parts of a state.
        lanes: The number of lanes.
    """
    found = []
    for part_KLH in torch.split(after_KLS, [*widths], dim=2):
        kinds, _, width = part_KLH.shape
        of_lanes = part_KLH.reshape(kinds, -1, lanes, width).permute(2, 0, 1, 3).flatten(2)
        found.append(of_lanes @ of_lanes.transpose(1, 2))
    products: Array = torch.stack(found, dim=1).double().numpy()
    return products


def describe_sums(sums: Sums, window: int) -> dict[str, Any]:
    """Computes the numbers of `GradientsFinding` from the sums, as `[value, low, high]`.

    Args:
        sums: The sums of a run.
        window: T.
    """
    parameters = _in_parameters(sums)
    states = _in_states(sums)
    names = [TRUNCATED, *(f"exact {window + reach}" for reach in sums.reaches)]
    if sums.has_synthetic:
        names.append(SYNTHETIC)
    horizons = [window, *(window + reach for reach in sums.reaches), None]
    gradients = {
        name: {
            "horizon": horizons[index],
            "parameters": {key: interval(values[:, index]) for key, values in parameters.items()},
            "states": {key: interval(values[:, index]) for key, values in states.items()},
        }
        for index, name in enumerate(names)
    }
    found: dict[str, Any] = {
        "gradients": gradients,
        "variance": _variance(sums),
        "worth": None,
        "by_distance": None,
        "by_part": None,
    }
    if sums.has_synthetic:
        found["worth"] = {
            "parameters": _worth(parameters["bias"], sums, window),
            "states": _worth(states["error"], sums, window),
        }
        found["by_distance"] = _by_distance(sums)
        found["by_part"] = _by_part(sums)
    return found


def _worth(errors_WX: Array, sums: Sums, window: int) -> list[float]:
    """Returns the real horizon whose gradient has the same error as the synthetic one.

    Args:
        errors_WX: Errors of the truncated gradient, each reach's and the synthetic one.
        sums: The sums of a run.
        window: T.
    """
    reaches = [0, *sums.reaches]
    real_RW = errors_WX[:, : len(reaches)].T
    found = worth(real_RW, reaches, errors_WX[:, -1])
    return [window + each for each in interval(found)]


def _totals_matrix(kinds: int) -> Array:
    """Returns the matrix that maps the windows' own gradient and the K contributions to totals.

    Total 0 is the windows' own gradient; each other one is the sum of that and its contribution.
    """
    matrix = np.eye(1 + kinds)
    matrix[:, 0] = 1
    return matrix


def _in_parameters(sums: Sums) -> dict[str, Array]:
    """Computes the mean gradients' agreement with that of the long horizon, each `(W, 1 + K)`."""
    last = sums.grams[-1]
    own_WKK = products_of_means(last, drawings(len(last)))
    totals = _totals_matrix(last.shape[1] - 1)
    products_WKK = np.einsum("xk,wkl,yl->wxy", totals, own_WKK, totals)
    found = _agreement(products_WKK, reference=len(sums.reaches))
    # Agreement of the contributions alone: the truncated gradient, at index 0, has none.
    added_WKK = own_WKK.copy()
    added_WKK[:, 0] = added_WKK[:, :, 0] = np.nan
    added = _agreement(added_WKK, reference=len(sums.reaches))
    return {
        "cosine": found["cosine"],
        "norm": found["norm"],
        "bias": found["error"],
        "added_cosine": added["cosine"],
        "added_slope": added["slope"],
    }


def _in_states(sums: Sums) -> dict[str, Array]:
    """Computes the state gradients' agreement with that of the long horizon, each `(W, 1 + K)`."""
    among_WKK = _drawn(sums.states_LQKK.sum(1))
    draws, kinds, _ = among_WKK.shape
    products_WKK = np.zeros((draws, 1 + kinds, 1 + kinds))  # index 0: truncated, which is zero
    products_WKK[:, 1:, 1:] = among_WKK
    return _agreement(products_WKK, reference=len(sums.reaches))


def _drawn(of_lanes_LKK: Array) -> Array:
    """Returns means over the drawn lanes, `(W, K, K)`."""
    lanes = len(of_lanes_LKK)
    return np.tensordot(drawings(lanes), of_lanes_LKK, axes=1) / lanes


def _agreement(products_WKK: Array, *, reference: int) -> dict[str, Array]:
    """Computes each kind's agreement with the kind at index `reference`, each `(W, K)`."""
    squares_WK = np.diagonal(products_WKK, axis1=1, axis2=2)
    right_W1 = squares_WK[:, [reference]]
    both_WK = products_WKK[:, :, reference]
    with np.errstate(invalid="ignore", divide="ignore"):
        positive_W1 = np.where(right_W1 > 0, right_W1, np.nan)
        return {
            "cosine": cosine(both_WK, squares_WK, right_W1),
            "norm": np.sqrt(np.where(squares_WK >= 0, squares_WK, np.nan) / positive_W1),
            "error": (squares_WK - 2 * both_WK + right_W1) / positive_W1,
            "slope": both_WK / np.where(squares_WK > 0, squares_WK, np.nan),
        }


def _variance(sums: Sums) -> dict[str, Any]:
    """Computes the mean cosine between parts' gradients, by the number of batches in each."""
    kinds = {TRUNCATED: 0, LONG: len(sums.reaches)}
    if sums.has_synthetic:
        kinds[SYNTHETIC] = len(sums.reaches) + 1
    drawn = drawings(len(sums.grams[0]))
    cosines: dict[str, list[list[float]]] = {name: [] for name in kinds}
    for own in sums.grams:
        totals = _totals_matrix(own.shape[1] - 1)
        products = np.einsum("xk,ikjl,yl->ixjy", totals, own, totals)
        for name, index in kinds.items():
            of_kind_MM = products[:, index, :, index]
            cosines[name].append(interval(mean_pairwise_cosine(of_kind_MM, drawn)))
    # The noise of a mean of n batches falls as 1/n: cosine = signal / (signal + noise/n).
    most = sums.batches[-1]
    for_half = {
        name: most * (1 / of_kind[-1][0] - 1) if of_kind[-1][0] > 0 else float("inf")
        for name, of_kind in cosines.items()
    }
    return {"batches": sums.batches, "cosine": cosines, "batches_for_half": for_half}


def _by_distance(sums: Sums) -> list[dict[str, Any]]:
    """Compares the synthetic state gradient with the exact one of each reach."""
    among_WKK = _drawn(sums.states_LQKK.sum(1))
    found = []
    for index, reach in enumerate(sums.reaches):
        agreed = _agreement(among_WKK, reference=index)
        found.append({"reach": reach, **{k: interval(v[:, -1]) for k, v in agreed.items()}})
    return found


def _by_part(sums: Sums) -> dict[str, dict[str, list[float]]]:
    """Compares the synthetic state gradient with the long horizon's, by part of the state."""
    found = {}
    for index, name in enumerate(sums.parts):
        among_WKK = _drawn(sums.states_LQKK[:, index])
        agreed = _agreement(among_WKK, reference=len(sums.reaches) - 1)
        found[name] = {key: interval(values[:, -1]) for key, values in agreed.items()}
    return found
