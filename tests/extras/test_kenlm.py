"""KenLM's interface: one set of laws for the package kenlm-ex and for `sglm.kenlm`."""

import copy
import importlib
import math
import pickle
from pathlib import Path
from typing import Any

import pytest

from sglm import kenlm
from tests.extras.conftest import needs
from tests.tiny_models import KINDS, save_lm
from tests.toy_ngrams import write_toy_arpa

SENTENCES = ["the cat sat", "the", "", "sat the zyx mat", "  the\tcat   sat "]


@pytest.fixture(params=["kenlm", *KINDS])
def module_and_model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Any]:
    if request.param != "kenlm":
        return kenlm, kenlm.Model(save_lm(request.param, tmp_path / "run"))
    package = needs("kenlm")
    return package, package.Model(str(write_toy_arpa(tmp_path / "toy.arpa")))


def test_scores_are_sums_of_words(module_and_model: tuple[Any, Any]) -> None:
    _, model = module_and_model
    for sentence in SENTENCES:
        for bos in (True, False):
            for eos in (True, False):
                words = list(model.full_scores(sentence, bos=bos, eos=eos))
                assert len(words) == len(sentence.split()) + eos
                total = math.fsum(log_prob for log_prob, _, _ in words)
                # KenLM's numbers are float32.
                assert model.score(sentence, bos=bos, eos=eos) == pytest.approx(total, abs=1e-5)
                assert all(log_prob < 0 and 1 <= n <= model.order for log_prob, n, _ in words)
        ppl = 10 ** (-model.score(sentence) / (len(sentence.split()) + 1))
        assert model.perplexity(sentence) == pytest.approx(ppl, rel=1e-5)
    assert model.score(SENTENCES[0]) == model.score(SENTENCES[-1])
    assert model.score("the cat") == model.score("the cat", True, True)


def test_word_by_word_is_the_sentence(module_and_model: tuple[Any, Any]) -> None:
    module, model = module_and_model
    for begin, bos in ((model.BeginSentenceWrite, True), (model.NullContextWrite, False)):
        state, after = module.State(), module.State()
        begin(state)
        expected = list(model.full_scores("the cat sat", bos=bos, eos=True))
        for word, (log_prob, length, oov) in zip(
            ["the", "cat", "sat", "</s>"], expected, strict=True
        ):
            assert model.BaseScore(state, word, after) == pytest.approx(log_prob, abs=1e-5)
            full = model.BaseFullScore(state, word, after)
            assert full.log_prob == pytest.approx(log_prob, abs=1e-5)
            assert (full.ngram_length, full.oov) == (length, oov)
            state, after = after, state


def test_states_are_values(module_and_model: tuple[Any, Any]) -> None:
    module, model = module_and_model

    def after(*words: str) -> Any:
        state, next_state = module.State(), module.State()
        model.BeginSentenceWrite(state)
        for word in words:
            model.BaseScore(state, word, next_state)
            state, next_state = next_state, state
        return state

    one, same, other = after("the", "cat"), after("the", "cat"), after("the", "mat")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    copied = copy.copy(one)
    model.BaseScore(one, "sat", one)  # what is written elsewhere changes no copy
    assert copied == same != one
    assert module.State() == module.State()


def test_words_and_pickles(module_and_model: tuple[Any, Any]) -> None:
    _, model = module_and_model
    assert "the" in model
    assert "<s>" in model
    assert b"the" in model  # texts may be UTF-8
    assert model.score(b"the cat sat", eos=False) == model.score("the cat sat", eos=False)
    assert model.perplexity(b"the cat") == model.perplexity("the cat")
    again = pickle.loads(pickle.dumps(model))
    assert again.path == model.path
    assert again.score("the cat sat") == model.score("the cat sat")


def test_it_has_what_kenlm_has() -> None:
    package = needs("kenlm")
    names = {name for name in dir(package) if name[0].isupper()}
    assert names <= set(dir(importlib.import_module("sglm.kenlm")))
    for name in names:
        theirs, ours = getattr(package, name), getattr(kenlm, name)
        public = {each for each in dir(theirs) if not each.startswith("_")}
        instance = ours() if name in ("Config", "State") else ours
        assert public <= set(dir(instance)) | {"path"}, name
