"""The options that mix a model with an n-gram model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglm.errors import InputError

if TYPE_CHECKING:
    from sglm.lm import LanguageModel
    from sglm.scoring.results import Context
    from sglm.text.store import TokenStore

TUNE = "tune"
MixOption = Annotated[
    Path | None,
    typer.Option(
        metavar="MODEL.arpa", help="Mix each token's probability with that of this n-gram model."
    ),
]


def mixed(lm: "LanguageModel", mix: Path | None, weight: float | None) -> "LanguageModel":
    """Returns the model itself, or its mixture with the n-gram model of `--mix`.

    Raises:
        InputError: See `sglm.mix.with_ngram`.
    """
    from sglm.mix import with_ngram

    return lm if mix is None or weight is None else with_ngram(lm, mix, weight=weight)


def check_both(mix: Path | None, weight: float | str | None) -> None:
    """Checks that `--mix` and `--weight` were given together.

    Raises:
        InputError: One of the two was given without the other.
    """
    if mix is None and weight is not None:
        raise InputError("--weight belongs to --mix MODEL.arpa; give that as well")
    if mix is not None and weight is None:
        raise InputError(
            "--mix needs --weight, from 0 to 1; `sglm eval RUN --mix MODEL.arpa --weight tune`"
            " finds a good one"
        )


def read_weight(weight: str) -> float:
    """Parses `--weight`, unless it is `tune`, which the caller handles.

    Raises:
        InputError: It is not a number.
    """
    try:
        return float(weight)
    except ValueError:
        raise InputError(f"--weight: {weight!r} is neither a number nor {TUNE}") from None


def tuned(
    lm: "LanguageModel", mix: Path, store: "TokenStore", *, context: "Context"
) -> tuple["LanguageModel", float]:
    """Mixes with the weight that is best on the first half of the store's validation split.

    Returns:
        The mixture and the weight.

    Raises:
        InputError: See `sglm.mix`.
    """
    from sglm.mix import read_ngram, tune_weight, with_ngram

    ngram = read_ngram(lm, mix)
    weight = tune_weight(lm, ngram, store, context=context)
    return with_ngram(lm, ngram, weight=weight), weight
