"""What can be read off a layer linearly: probes, fitted on one half of a text, scored on the other.

Needs scikit-learn. Shapes: N positions, D units of a layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError

# Of the penalties of standardised units. With a few thousand positions and hundreds of units, weak
# ones would let a probe fit noise; from a third to three times this the scores are the same.
_INVERSE_STRENGTH = 0.003
_RIDGE = np.logspace(0, 4, 9)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a probe is to find.

    Attributes:
        name: in tables.
        kind: `class` (scored by accuracy), `yes or no` (by the mean of the accuracies on both), or
            `number` (by R², the explained share of the variance).
        answers_N: integers from 0 on, truth values or floats.
        train_N: which positions to fit on; it is scored on the others.
    """

    name: str
    kind: str
    answers_N: npt.NDArray[Any]
    train_N: npt.NDArray[np.bool_]

    @property
    def chance(self) -> float:
        """The score of what knows nothing of the layer."""
        if self.kind == "number":
            return 0.0
        if self.kind == "yes or no":
            return 0.5
        most = np.bincount(self.answers_N[self.train_N]).argmax()
        return float((self.answers_N[~self.train_N] == most).mean())


def check_scikit_learn() -> None:
    """
    Raises:
        InputError: it is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError(
            'analyze representations needs scikit-learn for probes; pip install "sglm[analyze]"'
        ) from None


def probe(layer_ND: npt.NDArray[Any], question: Question) -> float:
    """The score of a linear model on the half that it was not fitted on.

    A ridge regression whose strength is chosen by cross-validation on its half (`number`), or a
    logistic regression (the others; both kinds of a yes-or-no question weigh the same).
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
