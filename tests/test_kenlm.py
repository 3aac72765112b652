"""What `sglm.kenlm` has of sglm; its laws, and KenLM's, are in `tests/extras/test_kenlm.py`."""

import math
import pickle
from pathlib import Path

import pytest

import sglm
from sglm import kenlm
from sglm.errors import InputError
from sglm.model.folder import save_model
from tests.tiny_models import KINDS, make_network, save_lm


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_is_as_probable_as_for_sglm(kind: str, tmp_path: Path) -> None:
    folder = save_lm(kind, tmp_path / "run")
    model, lm = kenlm.Model(str(folder)), sglm.load(folder)
    for eos in (False, True):
        expected = lm.score("the cat sat", eos=eos).logprob / math.log(10)
        # Read word by word here, at once there.
        assert model.score("the cat sat", eos=eos) == pytest.approx(expected, rel=1e-5)


def test_what_a_vocabulary_lacks_is_told(tmp_path: Path) -> None:
    model = kenlm.Model(save_lm("word", tmp_path / "run"))
    assert "zyx" not in model
    assert "the" in model
    assert not any(each in model for each in ("the cat", " the", "the\n", ""))  # no words
    assert [oov for _, _, oov in model.full_scores("the zyx", eos=False)] == [False, True]


def test_wrong_use_is_named(tmp_path: Path) -> None:
    model = kenlm.Model(save_lm("word", tmp_path / "run"))
    state = kenlm.State()
    with pytest.raises(InputError, match="BeginSentenceWrite"):
        model.BaseScore(state, "the", state)
    model.BeginSentenceWrite(state)
    save_model(
        make_network(model.language_model.tokenizer.vocab_size, seed=1),
        tmp_path / "other",
        model.language_model.tokenizer.fingerprint,
    )
    model.language_model.tokenizer.save(tmp_path / "other")
    with pytest.raises(InputError, match="belongs to another model; begin with"):
        kenlm.Model(tmp_path / "other").BaseScore(state, "the", kenlm.State())
    again = kenlm.Model(tmp_path / "run")  # the same model, loaded twice
    assert again.BaseScore(state, "the", kenlm.State()) < 0
    with pytest.raises(InputError, match="is not one word"):
        model.BaseScore(state, "the cat", state)
    for kind in (InputError, OSError):  # as KenLM's
        with pytest.raises(kind, match="nope"):
            kenlm.Model(tmp_path / "nope")
    with pytest.raises(InputError, match="a text must be a str, but this is int"):
        model.score(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not UTF-8"):
        b"\xff" in model  # noqa: B015


def test_a_pickle_is_read_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_lm("word", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    model = kenlm.Model("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(pickle.dumps(model)).score("the cat") == model.score("the cat")


def test_a_text_beyond_the_range_of_floats_has_an_infinite_perplexity(tmp_path: Path) -> None:
    model = sglm.kenlm.Model(save_lm("char", tmp_path / "model"))
    assert model.perplexity("x" * 2000) == math.inf


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_beginning_the_first_word_is_one_in_the_midst_of_a_text(
    kind: str, tmp_path: Path
) -> None:
    """With the space before it, where that is part of its tokens."""
    folder = save_lm(kind, tmp_path / "run")
    model, lm = kenlm.Model(str(folder)), sglm.load(folder)
    expected = lm.score(" the cat").logprob / math.log(10)
    assert model.score("the cat", bos=False, eos=False) == pytest.approx(expected, rel=1e-5)
    lengths = [each.ngram_length for each in model.full_scores("the cat", bos=False, eos=False)]
    assert lengths == [1, 2], "no <s> was read"
