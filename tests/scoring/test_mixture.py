"""Mixtures, and n-gram models as predictors: the laws of scoring hold for them too."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.ngram.arpa import read_arpa
from sglm.scoring.batch import STEP_LANES
from sglm.scoring.mixture import Mixture, fit_weights
from sglm.scoring.ngram_predictor import NgramPredictor
from sglm.scoring.predictor import IGNORED, Predictor
from sglm.text.tokenizer import WordTokenizer
from tests.tiny_models import make_lm, make_tokenizer
from tests.toy_ngrams import write_toy_arpa

FLOAT32 = 1e-6  # the LSTM's arithmetic
TEXTS = ["the cat sat on the mat", "", "a dog saw the cat and ran", "the zyx cat\nthe mat"]


@pytest.fixture(scope="module")
def ngram(tmp_path_factory: pytest.TempPathFactory) -> NgramPredictor:
    path = write_toy_arpa(tmp_path_factory.mktemp("arpa") / "toy.arpa")
    return NgramPredictor(read_arpa(path), tokenizer=make_tokenizer("word"), name="toy")


def lm_of(predictor: Predictor) -> LanguageModel:
    return LanguageModel(predictor, tokenizer=make_tokenizer("word"))


def test_lines_are_sentences(tmp_path: Path) -> None:
    """Each between <s> and </s>; what the vocabulary lacks is <unk>."""
    model = read_arpa(write_toy_arpa(tmp_path / "toy.arpa"))
    tokenizer = make_tokenizer("word")
    lm = lm_of(NgramPredictor(model, tokenizer=tokenizer, name="toy"))
    words = "<s> the zyx cat </s> <s> the mat </s>".replace("zyx", "<unk>").split()
    ids = [model.words.index(word) for word in words]
    expected = [
        model.logprobs(np.array([[-1, -1, *ids[:place]]]), np.array([ids[place]]))[0]
        for place, word in enumerate(words)
        if word != "<s>"
    ]
    score = lm.score("the zyx cat\nthe mat", eos=True)
    assert score.token_logprobs == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("weights", [[0.3, 0.7], [1.0, 0.0], [0.0, 1.0]])
def test_probabilities_are_mixed_token_by_token(
    ngram: NgramPredictor, weights: Sequence[float]
) -> None:
    lstm = make_lm("word")
    mixed = lm_of(Mixture([lstm.predictor, ngram], weights=weights))
    for eos in (False, True):
        for text in TEXTS:
            logprobs = [lm.score(text, eos=eos).token_logprobs for lm in (lstm, lm_of(ngram))]
            expected = [
                math.log(sum(w * math.exp(p) for w, p in zip(weights, each, strict=True)))
                for each in zip(*logprobs, strict=True)
            ]
            assert mixed.score(text, eos=eos).token_logprobs == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mixing", [False, True])
def test_however_a_text_is_read(ngram: NgramPredictor, mixing: bool) -> None:
    predictor = Mixture([make_lm("word").predictor, ngram], weights=[0.6, 0.4])
    lm = lm_of(predictor if mixing else ngram)
    # In lanes side by side, some with a common beginning that is read once.
    many = [text for text in TEXTS for _ in range(STEP_LANES)]
    for text, score in zip(many, lm.score([f"{t} mat" for t in many]), strict=True):
        assert score.logprob == pytest.approx(lm.score(f"{text} mat").logprob, rel=FLOAT32)
    # Piece by piece, and by what was expected.
    state, total = lm.start(), 0.0
    for piece in ("the cat", " sat on ", "the mat"):
        score, state = lm.extend(state, piece)
        total += score.logprob
    assert total == pytest.approx(lm.score("the cat sat on the mat").logprob, rel=FLOAT32)
    next_V = lm.next(state)
    assert np.exp(next_V).sum() == pytest.approx(1, rel=1e-5)  # seven digits in the file
    tokenizer = make_tokenizer("word")
    for token_id in range(2, tokenizer.vocab_size):
        added, _ = lm.extend(state, f" {tokenizer.token(token_id)}")
        assert next_V[token_id] == pytest.approx(added.logprob, rel=FLOAT32)


def test_what_is_not_predicted_is_nothing(ngram: NgramPredictor) -> None:
    mixture = Mixture([make_lm("word").predictor, ngram], weights=[0.7, 0.3])
    ids = torch.tensor([[2], [3], [4]])
    targets = torch.tensor([[3], [IGNORED], [5]])
    logprobs, state = mixture.read(ids, targets, mixture.start(1))
    assert logprobs is not None
    assert logprobs[1] == 0
    whole, _ = mixture.read(ids, torch.tensor([[3], [4], [5]]), mixture.start(1))
    assert whole is not None
    torch.testing.assert_close(logprobs[[0, 2]], whole[[0, 2]])
    none, same = mixture.read(ids, None, mixture.start(1))
    assert none is None
    assert torch.equal(same[1], state[1])


def test_the_best_weights_are_found() -> None:
    random = np.random.default_rng(0)
    logprobs_PN = np.log(random.uniform(0.01, 1, (2, 500)))
    logprobs_PN[0, :400] = 0.0
    weights = fit_weights(logprobs_PN)
    assert weights.sum() == pytest.approx(1)

    def likelihood(weight: float) -> float:
        return float(np.log(np.array([weight, 1 - weight]) @ np.exp(logprobs_PN)).sum())

    best = max(np.linspace(0, 1, 2001)[1:-1], key=likelihood)
    assert weights[0] == pytest.approx(best, abs=1e-3)  # the grid's step is 5e-4


def test_a_useless_predictor_gets_no_weight() -> None:
    weights = fit_weights(np.log([[0.5, 0.6, 0.7], [0.001, 0.002, 0.001]]))
    assert weights[1] < 1e-3


def test_another_vocabulary_is_named(tmp_path: Path) -> None:
    path = write_toy_arpa(tmp_path / "toy.arpa")
    model = read_arpa(path)
    with pytest.raises(InputError, match="predicts words, but this model predicts byte tokens"):
        NgramPredictor(model, tokenizer=make_tokenizer("byte"), name="toy")
    path.write_text(path.read_text().replace("\tcat", "\tdoge").replace(" cat", " doge"))
    with pytest.raises(InputError, match=r"x: another vocabulary: 1 words .* \('cat'\)"):
        NgramPredictor(read_arpa(path), tokenizer=make_tokenizer("word"), name="x")
    path = write_toy_arpa(tmp_path / "more.arpa", more=["qqq"])
    with pytest.raises(InputError, match=r"1 of its words are not the model's \('qqq'\)"):
        NgramPredictor(read_arpa(path), tokenizer=make_tokenizer("word"), name="x")


def test_what_an_n_gram_model_has_no_number_for_is_never_predicted(tmp_path: Path) -> None:
    """A closed vocabulary, without <unk>: among all tokens that may come next, too."""
    path = write_toy_arpa(tmp_path / "toy.arpa", order=1)
    lines = path.read_text().splitlines(keepends=True)
    known = "".join(line for line in lines if "<unk>" not in line)
    count = len(make_tokenizer("word").word_beginnings) + 1  # and <s>
    assert f"ngram 1={count}\n" in known
    path.write_text(known.replace(f"ngram 1={count}\n", f"ngram 1={count - 1}\n"))
    tokenizer = make_tokenizer("word")
    lm = lm_of(NgramPredictor(read_arpa(path), tokenizer=tokenizer, name="closed"))
    logprobs_V = lm.next(lm.start())
    assert logprobs_V[tokenizer.unk_id] == -math.inf
    assert np.isfinite(np.delete(logprobs_V, tokenizer.unk_id)).all()
    assert lm.score("zyx").logprob == -math.inf


def test_a_state_of_another_mixture_or_vocabulary_is_refused(
    ngram: NgramPredictor, tmp_path: Path
) -> None:
    lstm = make_lm("word").predictor
    mixed, ensemble = (lm_of(Mixture([lstm, other])) for other in (ngram, lstm))
    with pytest.raises(InputError, match="belongs to another model"):
        ensemble.extend(mixed.start(), "the cat")
    path = write_toy_arpa(tmp_path / "toy.arpa")
    path.write_text(path.read_text().replace("\tcat", "\tdoge").replace(" cat", " doge"))
    words = list(map(make_tokenizer("word").token, range(2, ngram.vocab_size)))
    tokenizer = WordTokenizer(["doge" if word == "cat" else word for word in words])
    doge = NgramPredictor(read_arpa(path), tokenizer=tokenizer, name="doge")
    with pytest.raises(InputError, match="belongs to another model"):
        LanguageModel(doge, tokenizer=tokenizer).extend(lm_of(ngram).start(), "the doge")
    lines = write_toy_arpa(path).read_text().split("\n")
    first, last = lines.index("\\1-grams:") + 1, lines.index("\\2-grams:") - 1
    lines[first:last] = reversed(lines[first:last])  # a state holds places among these
    path.write_text("\n".join(lines))
    turned = NgramPredictor(read_arpa(path), tokenizer=make_tokenizer("word"), name="turned")
    assert lm_of(turned).score("the cat").logprob == lm_of(ngram).score("the cat").logprob
    with pytest.raises(InputError, match="belongs to another model"):
        lm_of(turned).extend(lm_of(ngram).extend(lm_of(ngram).start(), "the")[1], " cat")


def test_the_last_steps_of_all_lanes_are_those_of_all_steps(ngram: NgramPredictor) -> None:
    ids_TB = torch.tensor([[2, 3], [4, 5], [6, 7]])
    every, _ = ngram.distributions(ids_TB, ngram.start(2))
    last, _ = ngram.distributions(ids_TB, ngram.start(2), last_steps=2)
    rows = [torch.cat([block for _, block in blocks]) for blocks in (every, last)]
    assert torch.equal(rows[1], rows[0][2:])
