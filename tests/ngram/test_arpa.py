"""ARPA files: what they say is what is scored, by hand; and what is wrong with one is named."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.ngram.arpa import read_arpa
from sglm.ngram.model import NgramModel
from tests.toy_ngrams import write_toy_arpa

# log10 probabilities and back-off weights; no trigram has the suffix "b b" of its own.
ARPA = r"""anything may stand here

\data\
ngram 1=5
ngram 2=3
ngram 3=2

\1-grams:
-2.0	<unk>
-99	<s>	-0.5
-1.0 </s>
-0.5	a	-0.25
-0.7	b	-0.125

\2-grams:
-0.3	<s> a	-0.0625
-0.4	a b	-0.03125
-0.6	b a

\3-grams:
-0.1	<s> a b
-0.2	a b a

\end\
and here
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "toy.arpa"
    path.write_text(ARPA)
    return path


def log10_of(model: NgramModel, *words: str) -> float:
    """The last word after those before it; a word that the model lacks is −1."""
    ids = [model.words.index(word) if word in model.words else -1 for word in words]
    history = np.array([[-1, -1, *ids[:-1]]], dtype=np.int64)
    return float(model.logprobs(history, np.array(ids[-1:]))[0] / math.log(10))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a", -0.5),
        ("<s> a", -0.3),
        ("<s> a b", -0.1),
        ("<s> b", -0.5 - 0.7),  # no bigram: the back-off weight of <s>
        ("a b a", -0.2),
        ("b a b", -0.4),  # "b a" has no back-off weight, which is 0
        ("<s> a a", -0.0625 - 0.25 - 0.5),  # two orders down
        ("a b b", -0.03125 - 0.125 - 0.7),
        ("b b a", -0.6),  # "b b" is no history of the model: no weight
        ("a b </s>", -0.03125 - 0.125 - 1.0),
        ("zyx a", -0.5),  # a history that the model does not know
        ("b zyx a", -0.5),
        ("b zyx", -math.inf),
        ("a b <unk>", -0.03125 - 0.125 - 2.0),
    ],
)
def test_a_word_after_a_history(path: Path, words: str, expected: float) -> None:
    assert log10_of(read_arpa(path), *words.split()) == pytest.approx(expected)


def test_distributions_are_the_words_one_by_one(path: Path) -> None:
    model = read_arpa(path)
    known = range(-1, len(model.words))
    history_NK = np.array([(one, other) for one in known for other in known])
    logprobs_NV = model.distributions(history_NK)
    for word in range(len(model.words)):
        words_N = np.full(len(history_NK), word)
        np.testing.assert_allclose(logprobs_NV[:, word], model.logprobs(history_NK, words_N))


def grams_of(text: str) -> dict[tuple[str, ...], tuple[float, float]]:
    """Every n-gram of an ARPA file: log10 probability and back-off weight."""
    grams = {}
    for section in text.split("-grams:\n")[1:]:
        for line in section.split("\n\n")[0].splitlines():
            logprob, words, *backoff = line.split("\t")
            grams[tuple(words.split())] = (float(logprob), float(backoff[0]) if backoff else 0.0)
    return grams


def test_all_words_after_all_histories(tmp_path: Path) -> None:
    """By the definition, n-gram by n-gram."""
    path = write_toy_arpa(tmp_path / "toy.arpa")
    model, grams = read_arpa(path), grams_of(path.read_text(encoding="utf-8"))
    assert len(grams) > 70
    names = [*model.words, "(none)"]  # −1 is the last one

    def log10(history: tuple[str, ...], word: str) -> float:
        if (*history, word) in grams:
            return grams[(*history, word)][0]
        return grams.get(history, (0, 0))[1] + log10(history[1:], word)

    known = range(-1, len(model.words))
    history_NK = np.array([(one, other) for one in known for other in known])
    expected = [
        [log10((names[one], names[other]), word) for word in model.words]
        for one, other in history_NK.tolist()
    ]
    np.testing.assert_allclose(model.distributions(history_NK), np.log(10) * np.array(expected))


def test_an_order_may_have_no_n_grams(path: Path) -> None:
    """So tools write a model of which all have been pruned."""
    without = ARPA.replace("ngram 3=2", "ngram 3=0\nngram 4=0")
    first, _, rest = without.partition("-0.1\t<s> a b\n-0.2\ta b a\n")
    path.write_text(f"{first}\n\\4-grams:\n{rest}")
    model = read_arpa(path)
    history = np.array([[-1, *(model.words.index(word) for word in ("<s>", "a"))]])
    words = np.arange(len(model.words))
    logprobs_V = model.logprobs(np.repeat(history, len(words), axis=0), words)
    assert logprobs_V[model.words.index("b")] == pytest.approx((-0.0625 - 0.4) * math.log(10))
    np.testing.assert_allclose(model.distributions(history)[0], logprobs_V)


def test_compressed_and_with_other_line_ends(path: Path, tmp_path: Path) -> None:
    packed = tmp_path / "toy.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.replace("\n", "\r\n").encode()))
    assert log10_of(read_arpa(packed), "a", "b", "a") == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"\data\\"[:-1], "data", "not an ARPA file: it has no line \\data\\"),
        ("ngram 2=3", "ngram 3=3", "line 5: expected ngram 2=COUNT"),
        ("ngram 1=5", "ngram 1=0", "the header announces no 1-grams"),
        ("ngram 1=5", f"ngram 1={'9' * 5000}", "line 4: expected ngram 1=COUNT"),
        ("ngram 2=3", "ngram 2=2", "line 18: more than the 2 2-grams that the header announces"),
        ("ngram 2=3", "ngram 2=4", "line 20: too few 2-grams: 4 announced, 3 found"),
        ("ngram 2=3", "ngram 2=99999999", "the header announces 100,000,006 n-grams, in a file of"),
        ("\\3-grams:", "\\4-grams:", "line 20: expected \\3-grams:"),
        ("\\end\\\nand here\n", "", "cut off: expected \\end\\"),
        ("-0.7\tb\t-0.125", "x\tb\t-0.125", "line 13: 'x' or '-0.125' is not a number"),
        ("-0.7\tb\t-0.125", "nan\tb\t-0.125", "line 13: log10 probability nan"),
        ("-0.7\tb\t-0.125", "0.7\tb\t-0.125", "line 13: log10 probability 0.7"),
        ("-0.7\tb\t-0.125", "-0.7\tb\tinf", "with back-off weight inf"),
        ("-0.7\tb\t-0.125", "-0.7", "line 13: expected a log10 probability, a word, and perhaps"),
        ("-0.4\ta b", "-0.4\ta a b", "line 17: expected a log10 probability, 2 words"),
        ("-0.4\ta b", "-0.4\ta c", "line 17: 'c' is not a 1-gram"),
        ("-0.4\ta b", "-0.4\tb b", "the 3-gram 'a b a' begins with 'a b', which is not a 2-gram"),
        ("-0.4\ta b", "-0.4\t<s> a", "the 2-gram '<s> a' occurs twice"),
        ("-0.5\ta\t", "-0.5\tb\t", "'b' occurs twice"),
        ("-1.0 </s>", "-1.0 end", "has no </s>; estimate it on sentences, one per line"),
    ],
)
def test_what_is_wrong_is_named(path: Path, old: str, new: str, message: str) -> None:
    assert old in ARPA
    path.write_text(ARPA.replace(old, new, 1))
    with pytest.raises(InputError) as error:
        read_arpa(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_binary_file_of_kenlm_is_named(path: Path) -> None:
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0\0")
    with pytest.raises(InputError, match="give the ARPA file that it was made from"):
        read_arpa(path)


def test_a_file_cut_anywhere_is_no_other_model(path: Path) -> None:
    whole = ARPA[: ARPA.index("\\end\\") + 5]
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(InputError):
            read_arpa(path)
    path.write_text(whole)
    assert read_arpa(path).order == 3
