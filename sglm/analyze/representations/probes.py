"""Linear probes of a layer, fitted on one half of a text and scored on the other.

They need scikit-learn. Shapes: N positions, D units of a layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError

# Inverse of the L2 penalty's strength, on standardised units. With a few thousand positions and
# hundreds of units, a weak penalty would let a probe fit noise; from a third to three times this
# value the scores are the same.
_INVERSE_STRENGTH = 0.003
_RIDGE = np.logspace(0, 4, 9)  # strengths that cross-validation chooses from


@dataclass(frozen=True, kw_only=True)
class Question:
    """A property of the positions that a probe is to predict.

    Attributes:
        name: Name in tables.
        kind: `class` (scored by accuracy), `yes or no` (scored by the mean of the accuracies on
            the two answers), or `number` (scored by R², the explained share of the variance).
        answers_N: True answers: integers from 0 on, truth values or floats.
        train_N: A mask of the positions on which to fit; the probe is scored on the others.
    """

    name: str
    kind: str
    answers_N: npt.NDArray[Any]
    train_N: npt.NDArray[np.bool_]

    @property
    def chance(self) -> float:
        """The score of a prediction that does not use the layer."""
        if self.kind == "number":
            return 0.0
        if self.kind == "yes or no":
            return 0.5
        most = np.bincount(self.answers_N[self.train_N]).argmax()
        return float((self.answers_N[~self.train_N] == most).mean())


def check_scikit_learn() -> None:
    """Checks that scikit-learn is installed.

    Raises:
        InputError: It is not.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError(
            'analyze representations needs scikit-learn for probes; pip install "sglm[analyze]"'
        ) from None


def probe(layer_ND: npt.NDArray[Any], question: Question) -> float:
    """Returns the score of a linear model on the half that it was not fitted on.

    The model is a ridge regression whose strength is chosen by cross-validation on the half that it
    is fitted on (`number`), or a logistic regression (`class` and `yes or no`; both answers to a
    yes-or-no question get the same total weight).
    """
    from sklearn.linear_model import LogisticRegression, RidgeCV
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if question.kind == "number":
        linear, score = RidgeCV(alphas=_RIDGE), r2_score
    else:
        is_binary = question.kind == "yes or no"
        linear = LogisticRegression(
            C=_INVERSE_STRENGTH,
            class_weight="balanced" if is_binary else None,
            tol=1e-3,
            max_iter=1000,
        )
        score = balanced_accuracy_score if is_binary else accuracy_score
    fitted, train_N = make_pipeline(StandardScaler(), linear), question.train_N
    fitted.fit(layer_ND[train_N], question.answers_N[train_N])
    return float(score(question.answers_N[~train_N], fitted.predict(layer_ND[~train_N])))
