"""Kneser–Ney by hand on a tiny text, and what holds for any text."""

import math
from pathlib import Path

import numpy as np
import pytest

from scripts.experiments.kneser_ney import (
    arpa_lines,
    count_grams,
    discounts,
    estimate,
    sentences,
    write_ngram_model,
)
from sglm.ngram.arpa import read_arpa
from sglm.ngram.model import NgramModel
from sglm.text.store import TokenStore

# </s>, <unk>, a, b, c, <s>: "a b", "a b", "c b a"; c is followed by b alone.
WORDS = ["</s>", "<unk>", "a", "b", "c", "<s>"]
END, A, B, C, BEGIN = 0, 2, 3, 4, 5
TEXT = np.array([A, B, END, A, B, END, C, B, A, END])


def toy_model(path: Path, order: int) -> NgramModel:
    text_N = sentences(TEXT, END, BEGIN)
    grams = estimate(text_N, BEGIN, vocab_size=5, order=order)
    path.write_text("\n".join(arpa_lines(grams, WORDS, BEGIN)))
    return read_arpa(path)


def probability(model: NgramModel, *words: str) -> float:
    ids = [model.words.index(word) for word in words]
    history = np.array([[-1, -1, *ids[:-1]]], dtype=np.int64)
    return math.exp(model.logprobs(history, np.array(ids[-1:]))[0])


def test_a_bigram_model_by_hand(tmp_path: Path) -> None:
    """So little text has no counts of 3 and 4, hence the discounts are 0.5, 1 and 1.5."""
    model = toy_model(tmp_path / "toy.arpa", 2)
    # Distinct words before: a 2 (<s>, b), b 2 (a, c), c 1 (<s>), </s> 2 (b, a): 7 in all.
    # Discounted by 1, 1, 0.5, 1: 3.5 of 7 are left for the five words, <unk> among them.
    share = 3.5 / 7 / 5
    p_a, p_b, p_c, p_end = 1 / 7 + share, 1 / 7 + share, 0.5 / 7 + share, 1 / 7 + share
    assert probability(model, "a") == pytest.approx(p_a)
    assert probability(model, "c") == pytest.approx(p_c)
    assert probability(model, "<unk>") == pytest.approx(share)
    # After <s>: a 2, c 1; discounted by 1 and 0.5, half of 3 are left.
    assert probability(model, "<s>", "a") == pytest.approx(1 / 3 + 0.5 * p_a)
    assert probability(model, "<s>", "b") == pytest.approx(0.5 * p_b)
    # After b: </s> 2, a 1. After c: b 1, of which one half is left.
    assert probability(model, "b", "</s>") == pytest.approx(1 / 3 + 0.5 * p_end)
    assert probability(model, "c", "b") == pytest.approx(0.5 + 0.5 * p_b)
    assert probability(model, "c", "<unk>") == pytest.approx(0.5 * share)


def test_a_trigram_model_counts_what_stands_before_its_bigrams(tmp_path: Path) -> None:
    model = toy_model(tmp_path / "toy.arpa", 3)
    two = toy_model(tmp_path / "two.arpa", 2)
    # "a b" occurs twice, but only after <s>: 1. "a </s>" after b: 1. Each discounted by 0.5.
    p_b = probability(two, "b")
    expected = (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * p_b
    assert probability(model, "a", "b") == pytest.approx(expected)
    # Nothing stands before "<s> a": its count is that of its occurrences.
    assert probability(model, "<s>", "a") == pytest.approx(probability(two, "<s>", "a"))
    # "<s> a b" twice, and nothing else follows "<s> a".
    assert probability(model, "<s>", "a", "b") == pytest.approx(0.5 + 0.5 * expected)


def test_every_distribution_adds_up_to_one(tmp_path: Path, word_store: TokenStore) -> None:
    write_ngram_model(word_store, tmp_path / "words.arpa", 4)
    model = read_arpa(tmp_path / "words.arpa")
    assert model.order == 4
    ids = np.random.default_rng(0).integers(-1, len(model.words), (200, 3))
    # Histories that there are, too.
    begin = model.words.index("<s>")
    the = model.words.index("the")
    ids[:100] = [-1, begin, the]
    total_N = np.exp(model.distributions(ids)).sum(axis=1)
    # The file has seven digits of each logarithm; <s> has a probability of 1e-99.
    np.testing.assert_allclose(total_N, 1, atol=1e-5)


def test_no_n_gram_goes_beyond_a_sentence() -> None:
    text_N = sentences(TEXT, END, BEGIN)
    for grams in count_grams(text_N, BEGIN, 3)[1:]:
        assert not (grams.words_GN[:, 1:] == BEGIN).any()
        assert not (grams.words_GN[:, :-1] == END).any()


def test_discounts_are_those_of_chen_and_goodman() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 7])
    y = 10 / (10 + 2 * 5)
    expected = [0, 1 - 2 * y * 5 / 10, 2 - 3 * y * 3 / 5, 3 - 4 * y * 2 / 3]
    np.testing.assert_allclose(discounts(counts), expected)
