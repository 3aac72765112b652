"""What `sglm.pyctcdecode` adds to a beam; `tests/extras/test_pyctcdecode.py` searches with it."""

import math
import pickle
from pathlib import Path

import pytest

import sglm
from sglm.errors import InputError
from sglm.pyctcdecode import SglmLanguageModel
from tests.tiny_models import KINDS, save_lm


@pytest.mark.parametrize("boundary", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_words_of_a_beam_add_up_to_its_text(kind: str, boundary: bool, tmp_path: Path) -> None:
    run = save_lm(kind, tmp_path / "run")
    model = SglmLanguageModel(run, alpha=0.7, beta=0.3, score_boundary=boundary)
    words = ["the", "cat", "sat"]
    state, total = model.get_start_state(), 0.0
    for word in words:
        # Whatever else is tried at the same place changes nothing.
        model.score(state, "mat")
        ended, same = model.score(state, word, is_last_word=True)
        added, state = model.score(state, word)
        assert same == state
        if not boundary:
            assert ended == added
        total += added
    end, after = model.score(state, "", is_last_word=True)  # a beam that ends in a space
    assert after == state
    lm = sglm.load(run)
    # From the middle of a text, the first word has a space before it.
    text = " the cat sat" if not boundary and kind != "word" else "the cat sat"
    expected = 0.7 * lm.score(text, eos=boundary).logprob + 0.3 * len(words)
    assert total + end == pytest.approx(expected, rel=1e-5)  # float32, added up in another order
    assert boundary == (end != 0)


def test_what_is_out_of_vocabulary_costs_more(tmp_path: Path) -> None:
    model = SglmLanguageModel(save_lm("word", tmp_path / "run"), alpha=0.5, unk_score_offset=-8.0)
    plain = SglmLanguageModel(tmp_path / "run", alpha=0.5, unk_score_offset=0.0)
    start = model.get_start_state()
    difference = model.score(start, "zyx")[0] - plain.score(start, "zyx")[0]
    assert difference == pytest.approx(0.5 * -8 * math.log(10))
    assert model.score(start, "cat")[0] == plain.score(start, "cat")[0]
    # "th" may become "the", "thz" nothing, and a long word costs more than a short one.
    partly = [model.score_partial_token(part) for part in ("th", "the", "thz", "thzthzthzthz")]
    assert partly == [0, 0, -8, -16]


@pytest.mark.parametrize("kind", ["sentencepiece", "byte"])
def test_which_words_there_are_can_be_told(kind: str, tmp_path: Path) -> None:
    run = save_lm(kind, tmp_path / "run")
    plain = SglmLanguageModel(run, alpha=0.5)
    assert not plain.score_boundary  # its <eos> ends documents, not lines
    assert plain.score_partial_token("th") == -10  # the search cannot know
    model = SglmLanguageModel(run, alpha=0.5, unigrams=["thin", "this", "thin"])
    partly = [model.score_partial_token(part) for part in ("th", "thin", "thz", "u")]
    assert partly == [0, 0, -10, -10]
    start = model.get_start_state()
    assert model.score(start, "this") == plain.score(start, "this")
    difference = model.score(start, "thi")[0] - plain.score(start, "thi")[0]
    assert difference == pytest.approx(0.5 * -10 * math.log(10))


def test_it_is_saved_loaded_and_pickled(tmp_path: Path) -> None:
    run = save_lm("word", tmp_path / "run")
    words = ["cat", *(f"a word of hundreds of thousands, {n}" for n in range(30_000))]
    model = SglmLanguageModel(run, alpha=0.9, score_boundary=False, unigrams=words)
    (tmp_path / "saved").mkdir()
    model.save_to_dir(str(tmp_path / "saved"))
    model.save_to_dir(str(tmp_path / "saved"))  # over it
    saved = SglmLanguageModel.load_from_dir(str(tmp_path / "saved"))
    saved.save_to_dir(str(tmp_path / "saved"))  # over itself
    for again in (
        SglmLanguageModel.load_from_dir(str(tmp_path / "saved")),
        pickle.loads(pickle.dumps(model)),
    ):
        start = model.get_start_state()
        assert again.get_start_state() == start
        for word in ("cat", "sat"):
            assert again.score(start, word)[0] == model.score(start, word)[0]
        again.reset_params(alpha=0.1, beta=None)
        assert (again.alpha, again.beta) == (0.1, model.beta)
    with pytest.raises(InputError, match="save it again"):
        SglmLanguageModel.load_from_dir(str(tmp_path))
    with pytest.raises(InputError, match="alpha must be finite"):
        SglmLanguageModel(run, alpha=float("nan"))
    with pytest.raises(InputError, match="unigrams must be a list of words"):
        SglmLanguageModel(run, unigrams="the cat")
    for wrong in ([None, "a"], [1, 2]):
        with pytest.raises(InputError, match="unigrams must be a list of words, but there is"):
            SglmLanguageModel(run, unigrams=wrong)  # type: ignore[list-item]
    with pytest.raises(InputError, match="alpha must be a number"):
        model.reset_params(alpha="much")
