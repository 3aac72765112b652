"""pyctcdecode's beam search with a model of sglm."""

from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import sglm
from sglm.pyctcdecode import SglmLanguageModel
from tests.extras.conftest import needs
from tests.tiny_models import KINDS, save_lm

needs("kenlm")  # without it, pyctcdecode complains
pyctcdecode = needs("pyctcdecode")
WORDS = ["the", "cat", "mat", "sat"]
LETTERS = ["", " ", *"abcdehmnorst"]


def spoken(*heard: str) -> npt.NDArray[np.float32]:
    """Log-probabilities of letters, `(T, V)`.

    Each frame is one of `heard`: a letter, or two, of which the first is a little more likely. The
    blank separates equal letters.
    """
    frames = []
    for letters, repeated in groupby(heard):
        frames += [letters, *["", letters] * (len(list(repeated)) - 1)]
    rows = np.full((len(frames), len(LETTERS)), 1e-4, dtype=np.float32)
    for row, letters in zip(rows, frames, strict=True):
        row[LETTERS.index(letters[:1])] = 0.6
        row[LETTERS.index(letters[1:] or letters)] = 0.4 if letters[1:] else 0.99
    return np.log(rows / rows.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_decides_what_is_ambiguous(kind: str, tmp_path: Path) -> None:
    run = save_lm(kind, tmp_path / "run")
    lm = sglm.load(run)
    model = SglmLanguageModel(run, unigrams=WORDS, alpha=10.0, beta=0.5)
    likelier, other = sorted(
        ("the cat sat", "the mat sat"),
        key=lambda text: -lm.score(text, eos=model.score_boundary).logprob,
    )
    # The ear prefers the one that the language model does not.
    heard = [*"the ", f"{other[4]}{likelier[4]}", *"at sat"]
    alphabet = pyctcdecode.Alphabet.build_alphabet(LETTERS)
    deaf = pyctcdecode.BeamSearchDecoderCTC(alphabet)
    assert deaf.decode(spoken(*heard)) == other
    decoder = pyctcdecode.BeamSearchDecoderCTC(alphabet, model)
    # A beam that begins badly stays until the end.
    beams = decoder.decode_beams(spoken(*heard), beam_prune_logp=-100.0, prune_history=True)
    assert beams[0][0] == likelier
    decoder.reset_params(alpha=0.0)
    assert decoder.decode(spoken(*heard)) == other


@pytest.mark.parametrize("kind", KINDS)
def test_a_beam_has_the_score_of_its_text(kind: str, tmp_path: Path) -> None:
    run = save_lm(kind, tmp_path / "run")
    lm = sglm.load(run)
    model = SglmLanguageModel(run, unigrams=WORDS, alpha=0.8, beta=0.5, score_boundary=True)
    decoder = pyctcdecode.BeamSearchDecoderCTC(pyctcdecode.Alphabet.build_alphabet(LETTERS), model)
    beams = decoder.decode_beams(spoken(*"the ", "cm", *"at"), beam_prune_logp=-50.0)
    assert {"the cat", "the mat"} <= {text for text, *_ in beams}
    for text, _, _, acoustic, combined in beams:
        if text in ("the cat", "the mat"):
            expected = 0.8 * lm.score(text, eos=True).logprob + 0.5 * len(text.split())
            # float32, added up in another order
            assert combined - acoustic == pytest.approx(expected, rel=1e-5)
