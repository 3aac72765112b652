"""Mixtures of a language model and an n-gram model.

Mixing in an n-gram model is an old and cheap way to improve a network (Mikolov et al. 2010,
"Recurrent neural network based language model", table 1).

Shapes: N tokens, P = 2 predictors: the language model, then the n-gram model.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.ngram.arpa import read_arpa
from sglm.scoring.arguments import checked_choice, real_number
from sglm.scoring.batch import sequence_nlls
from sglm.scoring.evaluate import half_of, text_ends
from sglm.scoring.mixture import Mixture, fit_weights
from sglm.scoring.ngram_predictor import NgramPredictor
from sglm.scoring.predictor import Predictor
from sglm.scoring.results import CONTEXTS, Context
from sglm.storage.untrusted import given_path
from sglm.text.store import TokenStore

Ids = npt.NDArray[np.int64]
Nats = npt.NDArray[np.float64]


def read_ngram(lm: LanguageModel, arpa: str | os.PathLike[str]) -> NgramPredictor:
    """Reads an n-gram model that predicts the tokens of `lm`.

    Args:
        lm: A word-level model.
        arpa: The n-gram model's ARPA file. Its words must be those of `lm`, including `<unk>`; the
            `<eos>` at the end of a line corresponds to `</s>`.

    Raises:
        InputError: The file does not exist or is not a complete ARPA file; the vocabularies differ.
    """
    path = given_path("an ARPA file", arpa)
    return NgramPredictor(read_arpa(path), tokenizer=lm.tokenizer, name=str(path))


def with_ngram(
    lm: LanguageModel, ngram: str | os.PathLike[str] | NgramPredictor, *, weight: float
) -> LanguageModel:
    """Mixes a language model with an n-gram model.

    The probability of each token is (1 − weight) · lm's + weight · the n-gram model's.

    >>> mix.with_ngram(sglm.load("runs/ptb"), "ptb.arpa", weight=0.3).score("the cat sat").ppl

    Args:
        lm: The language model; it is not changed.
        ngram: An ARPA file (see `read_ngram`), or the result of `read_ngram`.
        weight: The weight of the n-gram model, from 0 to 1.

    Returns:
        The mixture, as a model of its own.

    Raises:
        InputError: `read_ngram` raised it; `ngram` was read for a model with another vocabulary;
            the weight is out of range; `lm` adapts while it reads.
    """
    weight = real_number("weight", weight)
    if not 0 <= weight <= 1:
        raise InputError(f"weight must be from 0 to 1, but is {weight:g}")
    ngram = _checked_ngram(lm, ngram)
    return LanguageModel(
        Mixture([lm.predictor, ngram], weights=[1 - weight, weight]),
        tokenizer=lm.tokenizer,
        name=f"{lm.name} + {weight:g} · {ngram.name}",
        training_lines=lm.training_lines,
        bos_id=lm.bos_id,
    )


def _checked_ngram(
    lm: LanguageModel, ngram: str | os.PathLike[str] | NgramPredictor
) -> NgramPredictor:
    """Reads the n-gram model if necessary, and checks that it can be mixed with `lm`.

    Raises:
        InputError: It cannot.
    """
    if lm.adaptation is not None:
        raise InputError("a reader that adapts cannot be mixed; mix the model it was made from")
    if not isinstance(ngram, NgramPredictor):
        return read_ngram(lm, ngram)
    if ngram.fingerprint != lm.tokenizer.fingerprint:
        raise InputError(
            f"{ngram.name}: was read for a model with another vocabulary; read it for this one with"
            " read_ngram(lm, PATH)"
        )
    return ngram


def tune_weight(
    lm: LanguageModel,
    ngram: str | os.PathLike[str] | NgramPredictor,
    store: TokenStore | str | os.PathLike[str],
    *,
    context: Context = "carried",
) -> float:
    """Tunes the weight of the n-gram model on the first half of the validation split.

    It is the weight with which that half is most probable; `LanguageModel.evaluate` can evaluate
    the mixture on the other half.

    Args:
        lm, ngram: As for `with_ngram`.
        store: An open store or its path; `lm`'s tokenizer must have made it.
        context: As for `LanguageModel.evaluate`.

    Raises:
        InputError: There is no validation split, or it is too short; another tokenizer made the
            store; the models cannot be mixed (see `with_ngram`).
    """
    checked_choice("context", context, CONTEXTS)
    ngram = _checked_ngram(lm, ngram)
    if not isinstance(store, TokenStore):
        store = TokenStore.open(store)
    store.check_made_by(lm.tokenizer, lm.name)
    eos_id, bos_id = lm.tokenizer.eos_id, lm.bos_id
    first = half_of(store.ids("valid"), "first", eos_id=eos_id, bos_id=bos_id).astype(np.int64)
    texts = [first]
    if context == "reset":
        parts = np.split(first, text_ends(first, eos_id=eos_id, bos_id=bos_id))
        texts = [part for part in parts if len(part)]
    logprobs_PN = [_logprobs(each, texts, bos_id=bos_id) for each in (lm.predictor, ngram)]
    return float(fit_weights(np.stack(logprobs_PN))[1])


def _logprobs(predictor: Predictor[Any], texts: list[Ids], *, bos_id: int) -> Nats:
    begun = [np.concatenate(([bos_id], text)) for text in texts]
    return -np.concatenate(sequence_nlls(predictor, begun))
