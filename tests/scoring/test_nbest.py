"""N-best lists: reading, combining, tuning."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.scoring.nbest import NBest, Rescored, best_of, read_nbest, read_references, tune

LISTS = "a b\t-1.5\na\t-2\nab c\t0\nc\t1e-3\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "beams.tsv"
    path.write_text(LISTS)
    return path


def test_lists_are_as_many_lines_as_the_beam_is_wide(file: Path) -> None:
    lists = read_nbest(file, 2)
    assert lists.texts == ["a b", "a", "ab c", "c"]
    assert lists.scores_LK.tolist() == [[-1.5, -2], [0, 1e-3]]
    assert lists.lengths().tolist() == [[3, 1], [4, 1]]
    assert read_nbest(file, 4).scores_LK.shape == (1, 4)
    file.write_text(LISTS.replace("\n", "\r\n"))
    assert read_nbest(file, 2).texts == lists.texts


def test_a_candidate_is_as_good_as_all_three_together(file: Path) -> None:
    logprobs_LK = np.array([[-3.0, -1.0], [-8.0, -8.0]])
    rescored = Rescored(lists=read_nbest(file, 2), logprobs_LK=logprobs_LK, alpha=0.5, beta=0.25)
    assert rescored.combined().tolist() == [
        [-1.5 - 1.5 + 0.75, -2 - 0.5 + 0.25],
        [-4 + 1.0, 1e-3 - 4 + 0.25],
    ]
    assert [(best["text"], best["candidate"]) for best in rescored.best()] == [
        ("a b", 0),  # equally good: the first
        ("ab c", 0),
    ]
    assert rescored.best()[1] == {
        "text": "ab c",
        "candidate": 0,
        "score": 0.0,
        "logprob": -8.0,
        "combined": -3.0,
    }


def test_equal_candidates_are_measured_once() -> None:
    lists = NBest(texts=["a", "b", "b", "a"], scores_LK=np.zeros((2, 2)))
    asked: list[str] = []

    def measure(texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [float(ord(text)) for text in texts]

    assert lists.measure(measure).tolist() == [[97, 98], [98, 97]]
    assert asked == ["a", "b"]


def random_lists() -> tuple[NBest, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    texts = ["x" * int(length) for length in random.integers(1, 20, 300)]
    lists = NBest(texts=texts, scores_LK=random.normal(size=(60, 5)))
    logprobs_LK = 5 * random.normal(size=(60, 5))
    # Errors are few where both numbers are large, and the text is long.
    quality_LK = lists.scores_LK + 0.2 * logprobs_LK + 0.1 * lists.lengths()
    errors_LK = quality_LK.max(axis=1, keepdims=True) - quality_LK
    return lists, logprobs_LK, np.round(100 * errors_LK).astype(np.int64)


def errors_of(
    lists: NBest, logprobs_LK: np.ndarray, errors_LK: np.ndarray, *, alpha: float, beta: float
) -> int:
    combined = Rescored(lists=lists, logprobs_LK=logprobs_LK, alpha=alpha, beta=beta).combined()
    return int(errors_LK[np.arange(60), best_of(combined)].sum())


def test_tuning_finds_weights_near_those_that_make_no_error() -> None:
    lists, logprobs_LK, errors_LK = random_lists()
    alpha, beta = tune(lists, logprobs_LK, errors_LK)
    fewest = errors_of(lists, logprobs_LK, errors_LK, alpha=alpha, beta=beta)
    for other in ((0, 0), (0.2, 0), (0, 0.1), (1, 1)):
        a, b = other
        assert fewest < errors_of(lists, logprobs_LK, errors_LK, alpha=a, beta=b)
    # Near the weights that the errors were made with; the grid's steps are 0.01.
    assert alpha == pytest.approx(0.2, abs=0.02)
    assert beta == pytest.approx(0.1, abs=0.02)


def test_tuning_does_not_depend_on_the_units() -> None:
    lists, logprobs_LK, errors_LK = random_lists()
    alpha, beta = tune(lists, logprobs_LK, errors_LK)
    scaled = NBest(texts=lists.texts, scores_LK=100 * lists.scores_LK)
    # Rounded to three digits.
    for one, other in zip(tune(scaled, logprobs_LK, errors_LK), (alpha, beta), strict=True):
        assert one == pytest.approx(100 * other, rel=1e-2)


def test_a_weight_that_is_given_stays() -> None:
    lists, logprobs_LK, errors_LK = random_lists()
    assert tune(lists, logprobs_LK, errors_LK, alpha=0.7)[0] == 0.7
    alpha, beta = tune(lists, logprobs_LK, errors_LK, beta=-0.3)
    assert beta == -0.3
    assert alpha != 0


def test_what_changes_nothing_gets_no_weight() -> None:
    lists = NBest(texts=["a", "b"], scores_LK=np.array([[1.0, 0.0]]))
    assert tune(lists, np.array([[-1.0, -2.0]]), np.array([[0, 1]])) == (0, 0)


@pytest.mark.parametrize(
    ("text", "beam_size", "message"),
    [
        ("a\t1\nb\n", 1, "line 2: 1 columns where there should be text<TAB>score"),
        ("a\tb\t1\n", 1, "line 1: 3 columns"),
        ("a\t1\n\n", 1, "line 2: 1 columns"),
        ("a\tb\n", 1, "line 1: the score 'b' is not a finite number"),
        ("1.5\ta b\n", 1, "line 1: the score 'a b' is not a finite number"),
        ("a\tnan\n", 1, "line 1: the score 'nan' is not a finite number"),
        ("a\t-inf\n", 1, "line 1: the score '-inf' is not a finite number"),
        ("a\t1\n \t2\n", 1, "line 2: an empty candidate"),
        ("a\t1\nb\t2\nc\t3\n", 2, "3 lines are not a multiple of the 2 candidates of a list"),
        ("", 2, "has no candidates"),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, beam_size: int, message: str) -> None:
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_nbest(file, beam_size)
    assert message in str(error.value)
    assert str(file) in str(error.value)


def test_references(file: Path, tmp_path: Path) -> None:
    lists = read_nbest(file, 2)
    references = tmp_path / "references.txt"
    references.write_text("a b\n\n")  # the second says nothing
    assert read_references(references, lists) == ["a b", ""]
    manifest = tmp_path / "manifest.json"
    manifest.write_text('{"text": "a b", "duration": 1.5}\n{"text": "c", "duration": 2}\n')
    assert read_references(manifest, lists) == ["a b", "c"]
    packed = tmp_path / "MANIFEST.JSON.GZ"
    packed.write_bytes(gzip.compress(manifest.read_bytes()))
    assert read_references(packed, lists) == ["a b", "c"]
    manifest.write_text('{"text": "a b"}\n{"txt": "c"}\n')
    with pytest.raises(
        InputError, match=r"line 2: no field 'text', which holds the reference in a manifest"
    ):
        read_references(manifest, lists)
    references.write_text("a b\n")
    with pytest.raises(InputError, match="1 references for 2 lists of 2 candidates"):
        read_references(references, lists)
    references.write_text("\n\n")
    with pytest.raises(InputError, match="has no words"):
        read_references(references, lists)


def test_a_weight_of_zero_has_no_sign() -> None:
    """Where all candidates are equally long, the length decides nothing."""
    lists = NBest(texts=["ab", "cd"], scores_LK=np.array([[0.0, 1.0]]))
    alpha, beta = tune(lists, np.zeros((1, 2)), np.array([[0, 1]]))
    assert (math.copysign(1, alpha), math.copysign(1, beta)) == (1, 1)


def test_tuning_does_not_depend_on_what_all_candidates_of_a_list_share() -> None:
    """A long utterance has low scores throughout; only differences inside a list decide."""
    lists, logprobs_LK, errors_LK = random_lists()
    shared_L1 = np.linspace(-50, 50, 60).round()[:, None]
    shifted = NBest(texts=lists.texts, scores_LK=lists.scores_LK + shared_L1)
    found = tune(shifted, logprobs_LK + 3 * shared_L1, errors_LK)
    assert found == pytest.approx(tune(lists, logprobs_LK, errors_LK), rel=1e-2)  # three digits


def test_more_references_than_lists_are_refused(file: Path, tmp_path: Path) -> None:
    references = tmp_path / "references.txt"
    references.write_text("a b\nc\na\n")
    with pytest.raises(InputError, match="3 references for 2 lists"):
        read_references(references, read_nbest(file, 2))


def test_many_candidates_are_measured_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglm.scoring.nbest._CHUNK", 2)
    asked: list[list[str]] = []

    def measure(texts: list[str]) -> list[float]:
        asked.append(texts)
        return [float(ord(text)) for text in texts]

    lists = NBest(texts=list("abcab"), scores_LK=np.zeros((1, 5)))
    assert lists.measure(measure).tolist() == [[97, 98, 99, 97, 98]]
    assert asked == [["a", "b"], ["c"]]
