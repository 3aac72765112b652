"""A critic's values compared with the observed future loss, and their derivative with its gradient.

Shapes: L lanes, T steps of a window, N windows of a lane, C steps of text, S coordinates of a
lane's state, R reaches.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.products import Array, cosine, drawings, interval
from sglm.analyze.reading import Reading, future_state_gradients, unpacked
from sglm.dni.critic import HORIZON, CriticEstimator
from sglm.model.language_model import LSTMLanguageModel

_VALUE_STEPS = 3 * HORIZON  # the discounted nats beyond have a twentieth of the total weight
_DERIVATIVE_WINDOWS = 4  # windows of each lane after which derivatives are compared


def value_steps(window: int) -> int:
    """Returns the number of steps whose nats a value is compared with, in whole windows."""
    return math.ceil(_VALUE_STEPS / window) * window


def compare_values(
    model: LSTMLanguageModel,
    reading: Reading,
    estimator: CriticEstimator,
    *,
    reaches: Sequence[int],
) -> dict[str, Any]:
    """Compares a critic's values with the observed future nats, as `[value, low, high]`.

    Args:
        model, reading: The model and its reading of a text that goes on for `value_steps` after the
            last window.
        estimator: The estimator whose critic is evaluated.
        reaches: The reaches of the exact gradients that the derivative is compared with, ascending.
    """
    observed_NL = discounted_nats(model, reading, estimator.critic.discount)
    states_NLS = reading.states_NLS[1:]
    predicted_NL = (
        torch.stack([estimator.values(each_LS) for each_LS in states_NLS]).double().numpy()
    )
    return {
        "steps": value_steps(reading.window),
        "discount": estimator.critic.discount,
        **agreement_of_values(predicted_NL, observed_NL),
        "derivative": _derivative(model, reading, estimator, reaches=reaches),
    }


def discounted_nats(model: LSTMLanguageModel, reading: Reading, discount: float) -> Array:
    """Returns Σ_j γ^j·(nats of window j) after each window, `(N, L)`.

    Beyond `value_steps`, each window counts with the mean nats of a window.
    """
    ahead = value_steps(reading.window) // reading.window
    nats_WL = _window_nats(model, reading)[: reading.windows + ahead]
    weights = discount ** np.arange(ahead)
    rest = nats_WL.mean() * discount**ahead / (1 - discount)
    found: Array = np.stack(
        [
            weights @ nats_WL[index + 1 : index + 1 + ahead] + rest
            for index in range(reading.windows)
        ]
    )
    return found


@torch.no_grad()
def _window_nats(model: LSTMLanguageModel, reading: Reading) -> Array:
    """Returns the nats of each of the text's W whole windows, `(W, L)`."""
    state, found = unpacked(model, reading.states_NLS[0]), []
    for start in range(0, len(reading.inputs_CL) - reading.window + 1, reading.window):
        piece = slice(start, start + reading.window)
        features_TLH, state = model.features(reading.inputs_CL[piece], state)
        nats_TL = model.nll(features_TLH, reading.targets_CL[piece], reduction="none")
        found.append(nats_TL.double().sum(0))
    nats: Array = torch.stack(found).numpy()
    return nats


def agreement_of_values(predicted_NL: Array, observed_NL: Array) -> dict[str, list[float]]:
    """Computes the agreement of predicted and observed values, with lanes drawn for the intervals.

    Args:
        predicted_NL: The predicted values.
        observed_NL: The observed ones.

    Returns:
        `explained`: 1 − mean squared error / variance of the observed values; `correlation`;
        `slope` of the regression of the observed values on the predicted ones; `predicted_sd` and
        `observed_sd`: standard deviations of the predicted and the observed values.
    """
    sums_L6 = np.stack(
        [
            each.sum(0)
            for each in (
                np.ones_like(predicted_NL),
                predicted_NL,
                observed_NL,
                predicted_NL**2,
                predicted_NL * observed_NL,
                observed_NL**2,
            )
        ],
        axis=1,
    )
    count, predicted, observed, predicted2, both, observed2 = (drawings(len(sums_L6)) @ sums_L6).T
    with np.errstate(invalid="ignore", divide="ignore"):
        predicted_variance = predicted2 / count - (predicted / count) ** 2
        observed_variance = observed2 / count - (observed / count) ** 2
        covariance = both / count - predicted * observed / count**2
        squared_error = (predicted2 - 2 * both + observed2) / count
        predicted_variance = np.where(predicted_variance > 0, predicted_variance, np.nan)
        return {
            "explained": interval(1 - squared_error / observed_variance),
            "correlation": interval(cosine(covariance, predicted_variance, observed_variance)),
            "slope": interval(covariance / predicted_variance),
            "predicted_sd": interval(np.sqrt(predicted_variance)),
            "observed_sd": interval(np.sqrt(observed_variance)),
        }


def _derivative(
    model: LSTMLanguageModel,
    reading: Reading,
    estimator: CriticEstimator,
    *,
    reaches: Sequence[int],
) -> list[dict[str, Any]]:
    """Compares ∂V/∂s, before bound and factor, with the exact gradient of each reach."""
    lanes = reading.inputs_CL.shape[1]
    products_LR3 = np.zeros((lanes, len(reaches), 3))
    for index in range(min(_DERIVATIVE_WINDOWS, reading.windows)):
        exact_RLS = future_state_gradients(
            model, reading, reaches, windows=range(index, index + 1), lanes=slice(None)
        )
        derived_LS = estimator.derivatives(reading.states_NLS[index + 1])
        products_LR3 += _products(derived_LS, exact_RLS)
    drawn_WR3 = np.tensordot(drawings(lanes), products_LR3, axes=1)
    found = []
    for place, reach in enumerate(reaches):
        both, own, exact = drawn_WR3[:, place].T
        slope = both / np.where(own > 0, own, np.nan)
        found.append(
            {
                "reach": reach,
                "cosine": interval(cosine(both, own, exact)),
                "slope": interval(slope),
                "error": interval((own - 2 * both + exact) / exact),
            }
        )
    return found


def _products(derived_LS: Tensor, exact_RLS: Tensor) -> Array:
    """Returns ⟨derived, exact⟩, ⟨derived, derived⟩ and ⟨exact, exact⟩, `(L, R, 3)`."""
    both_RL = (derived_LS * exact_RLS).sum(-1)
    own_RL = derived_LS.square().sum(-1).expand_as(both_RL)
    exact_RL = exact_RLS.square().sum(-1)
    found: Array = torch.stack((both_RL, own_RL, exact_RL), dim=-1).transpose(0, 1).double().numpy()
    return found
