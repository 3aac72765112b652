"""A language model mixed with an n-gram model: an old and cheap gain (Mikolov et al. 2011,
"Extensions of recurrent neural network language model", sec. 4)."""

import math
import os
from pathlib import Path

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.ngram.arpa import read_arpa
from sglm.scoring.arguments import real_number
from sglm.scoring.mixture import Mixture
from sglm.scoring.ngram_predictor import NgramPredictor
from sglm.storage.untrusted import given_path


def with_ngram(lm: LanguageModel, arpa: str | os.PathLike[str], *, weight: float) -> LanguageModel:
    """A model whose probability of each token is (1 − weight) · lm's + weight · the n-gram's.

    >>> mix.with_ngram(sglm.load("runs/ptb"), "ptb.arpa", weight=0.3).score("the cat sat").ppl

    Args:
        lm: of words; is not changed.
        arpa: the n-gram model's file, over the same words, `<unk>` among them. A line's `<eos>` is
            its `</s>`.
        weight: of the n-gram model, from 0 to 1.

    Raises:
        InputError: no such file, or no ARPA file; another vocabulary; a weight out of range.
    """
    weight = real_number("weight", weight)
    if not (math.isfinite(weight) and 0 <= weight <= 1):
        raise InputError(f"weight: {weight:g} is no weight of a mixture; it is from 0 to 1")
    ngram = ngram_predictor(lm, arpa)
    return LanguageModel(
        Mixture([lm.predictor, ngram], weights=[1 - weight, weight]),
        tokenizer=lm.tokenizer,
        name=f"{lm.name} + {weight:g} · {os.fspath(arpa)}",
        training_lines=lm.training_lines,
    )


def ngram_predictor(lm: LanguageModel, arpa: str | os.PathLike[str]) -> NgramPredictor:
    """The n-gram model alone, with the tokens of `lm`; for errors, see `with_ngram`."""
    path: Path = given_path("an ARPA file", arpa)
    return NgramPredictor(read_arpa(path), tokenizer=lm.tokenizer, name=str(path))
