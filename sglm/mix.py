"""A language model mixed with an n-gram model: an old and cheap gain (Mikolov et al. 2010,
"Recurrent neural network based language model", table 1).

Shapes: N tokens, P = 2 predictors: the model, then the n-gram model.
"""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.ngram.arpa import read_arpa
from sglm.scoring.arguments import one_of, real_number
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
    """An n-gram model that predicts the tokens of `lm`.

    Args:
        lm: of words.
        arpa: the n-gram model's file, over the same words, `<unk>` among them. A line's `<eos>` is
            its `</s>`.

    Raises:
        InputError: no such file, or no whole ARPA file; another vocabulary.
    """
    path = given_path("an ARPA file", arpa)
    return NgramPredictor(read_arpa(path), tokenizer=lm.tokenizer, name=str(path))


def with_ngram(
    lm: LanguageModel, ngram: str | os.PathLike[str] | NgramPredictor, *, weight: float
) -> LanguageModel:
    """A model whose probability of each token is (1 − weight) · lm's + weight · the n-gram's.

    >>> mix.with_ngram(sglm.load("runs/ptb"), "ptb.arpa", weight=0.3).score("the cat sat").ppl

    Args:
        lm: is not changed.
        ngram: an ARPA file (`read_ngram`), or what was read from one.
        weight: of the n-gram model, from 0 to 1.

    Raises:
        InputError: see `read_ngram`; what was read for a model of another vocabulary; a weight out
            of range; a model that adapts while it reads.
    """
    weight = real_number("weight", weight)
    if not 0 <= weight <= 1:
        raise InputError(f"weight: {weight:g} is no weight of a mixture; it is from 0 to 1")
    ngram = _partner(lm, ngram)
    return LanguageModel(
        Mixture([lm.predictor, ngram], weights=[1 - weight, weight]),
        tokenizer=lm.tokenizer,
        name=f"{lm.name} + {weight:g} · {ngram.name}",
        training_lines=lm.training_lines,
        bos_id=lm.bos_id,
    )


def _partner(lm: LanguageModel, ngram: str | os.PathLike[str] | NgramPredictor) -> NgramPredictor:
    """The n-gram model, which can be mixed with this one.

    Raises:
        InputError: it cannot.
    """
    if lm.adaptation is not None:
        raise InputError("a reader that adapts cannot be mixed; mix the model that it was made of")
    if not isinstance(ngram, NgramPredictor):
        return read_ngram(lm, ngram)
    if ngram.fingerprint != lm.tokenizer.fingerprint:
        raise InputError(
            f"{ngram.name}: was read for a model of another vocabulary; read_ngram(lm, PATH) reads"
            " it for this one"
        )
    return ngram


def tune_weight(
    lm: LanguageModel,
    ngram: str | os.PathLike[str] | NgramPredictor,
    store: TokenStore | str | os.PathLike[str],
    *,
    context: Context = "carried",
) -> float:
    """The weight of the n-gram model with which the first half of the validation split is the most
    probable (`LanguageModel.evaluate` knows the other half).

    Args:
        lm, ngram: as for `with_ngram`.
        store: opened or as its path, made by `lm`'s tokenizer.
        context: as for `LanguageModel.evaluate`.

    Raises:
        InputError: no such split, or too short a one; see `with_ngram`; a store made by another
            tokenizer.
    """
    one_of("context", context, CONTEXTS)
    ngram = _partner(lm, ngram)
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
