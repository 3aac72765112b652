"""Which lines of one text occur in another: exact where all are kept, fair where not."""

import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.text import overlap
from sglm.text.lines import Piece
from sglm.text.overlap import LineHasher, LineHashes
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from tests.conftest import make_text


def hashed(texts: Iterable[str]) -> LineHashes:
    hasher = LineHasher()
    for text in texts:
        hasher.add(text)
    return hasher.finish()


def numbered(numbers: Iterable[int]) -> str:
    return "\n".join(f"this is the line number {number}" for number in numbers)


LINES = st.lists(st.sampled_from([numbered([n]) for n in range(9)] + ["too short", "", " "]))


@given(LINES, LINES)
@settings(max_examples=50, deadline=None)
def test_it_is_the_count_that_a_dictionary_gives(first: list[str], second: list[str]) -> None:
    known = {line for line in second if len(line.split()) >= 5}
    one, other = hashed(["\n".join(first)]), hashed(["\n".join(second)])
    assert one.line_count == sum(len(line.split()) >= 5 for line in first)
    assert one.overlap(other) == sum(line in known for line in first)


def test_the_lines_of_two_texts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglm.text.overlap.MOST_KEPT", 100)
    first, second = (numbered(range(start, start + 300)) for start in (0, 200))
    joined, whole = hashed([first]).joined(hashed([second])), hashed([first, second])
    assert (joined.line_count, joined.shift) == (whole.line_count, whole.shift)
    np.testing.assert_array_equal(joined.hashes, whole.hashes)
    np.testing.assert_array_equal(joined.counts, whole.counts)


def test_short_lines_do_not_count_and_white_space_does_not_distinguish() -> None:
    text = "a b c d\na b c d e\n  a  b\tc d e \r\n\nA b c d e\n"
    hashes = hashed([text])
    assert hashes.line_count == 3
    assert hashes.overlap(hashed(["a b c d e"])) == 2


@given(LINES, st.integers(0, 8))
@settings(max_examples=50, deadline=None)
def test_parts_of_the_text_add_up(lines: list[str], cut: int) -> None:
    whole, parts = hashed(["\n".join(lines)]), hashed(["\n".join(lines[:cut]), *lines[cut:]])
    assert (whole.line_count, whole.shift) == (parts.line_count, parts.shift)
    np.testing.assert_array_equal(whole.hashes, parts.hashes)
    np.testing.assert_array_equal(whole.counts, parts.counts)


def test_a_large_text_is_sampled_and_the_answer_still_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_KEPT", 1000)
    monkeypatch.setattr(overlap, "_MERGED_AT_ONCE", 64)
    training = hashed(numbered(range(n, n + 50)) for n in range(0, 20_000, 50))
    # 20,000 / 2⁵ fit, 20,000 / 2⁴ do not.
    assert (training.line_count, training.shift) == (20_000, 5)
    assert len(training.hashes) <= 1000
    text = hashed([numbered([*range(19_000, 23_000)] * 2)])
    assert text.line_count == 8000
    # 1000 of the 4000 lines, each twice. One in 32 is looked at: 31 of them ± √31, twice.
    assert text.overlap(training) == pytest.approx(2000, abs=4 * 2 * 32 * 31**0.5 / 2)
    assert hashed([numbered(range(30_000, 40_000))]).overlap(training) == 0
    # Of lines that all occur, the sample's estimate may be more than there are; the count is not.
    assert hashed([numbered(range(50))]).overlap(training) <= 50


def test_memory_is_bounded_and_duplicates_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "MOST_KEPT", 500)
    monkeypatch.setattr(overlap, "_MERGED_AT_ONCE", 100)
    hasher = LineHasher()
    for start in range(0, 5000, 10):
        hasher.add(numbered([*range(start, start + 10), 1]))
        assert len(hasher._hashes) <= 500
        assert len(hasher._waiting) <= 8 * (250 + 11)
    same = hashed([numbered([1] * 2000)])
    assert (same.line_count, same.shift, same.counts.tolist()) == (2000, 0, [2000])


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = hashed([numbered(random.Random(0).choices(range(100), k=300))])
    written.write(tmp_path / "lines")
    again = LineHashes.read(tmp_path / "lines")
    assert again is not None
    assert (again.line_count, again.shift) == (300, 0)
    np.testing.assert_array_equal(again.hashes, written.hashes)
    np.testing.assert_array_equal(again.counts, written.counts)
    assert LineHashes.read(tmp_path / "none") is None
    hashed([]).write(tmp_path / "empty")
    assert hashed([numbered([1])]).overlap(LineHashes.read(tmp_path / "empty")) == 0  # type: ignore[arg-type]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.lines"
    hashed([numbered(range(50))]).write(path)
    good = path.read_bytes()
    swapped = good[:24] + good[32:40] + good[24:32] + good[40:]
    wrong_shift = good[:16] + (70).to_bytes(8, "little") + good[24:]
    above_threshold = good[:16] + (60).to_bytes(8, "little") + good[24:]
    for bad in (b"", good[:20], good[:-1], b"x" + good[1:], swapped, wrong_shift, above_threshold):
        path.write_bytes(bad)
        with pytest.raises(InputError, match=r"train\.lines: damaged"):
            LineHashes.read(path)


def test_watching_passes_everything_on() -> None:
    pieces = [Piece(numbered([n]) + "\n", ends_document=False) for n in range(5)]
    hasher = LineHasher()
    assert list(hasher.watch(iter(pieces))) == pieces
    assert hasher.finish().line_count == 5


@pytest.mark.parametrize("tokenizer", ["word", "byte"])
def test_a_store_remembers_the_lines_of_its_splits(tmp_path: Path, tokenizer: str) -> None:
    text, other = make_text(300), make_text(80, seed=1)
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(other + numbered(range(20)), encoding="utf-8")
    store = prepare(
        [str(tmp_path / "train.txt")],
        tmp_path / "store",
        StoreSettings(tokenizer=tokenizer, valid=str(tmp_path / "valid.txt"), test=0.0),
    )
    training, valid = store.line_hashes("train"), store.line_hashes("valid")
    assert training is not None
    assert valid is not None
    known = Counter(text.splitlines())
    long = [line for line in other.splitlines() if len(line.split()) >= 5]
    assert valid.line_count == len(long) + 20
    assert valid.overlap(training) == sum(line in known for line in long)
    # Stores of earlier versions remember nothing; that is no error.
    (tmp_path / "store" / "train.lines").unlink()
    assert TokenStore.open(tmp_path / "store").line_hashes("train") is None


@pytest.mark.parametrize("sizes", [(5, 2000), (2000, 5)])
def test_where_one_of_two_texts_was_sampled_both_are(
    sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the lines of the one that was not would be scaled up with the others."""
    monkeypatch.setattr(overlap, "MOST_KEPT", 100)
    first, second = numbered(range(sizes[0])), numbered(range(5000, 5000 + sizes[1]))
    joined, whole = hashed([first]).joined(hashed([second])), hashed([first, second])
    assert joined.shift == whole.shift > 0
    np.testing.assert_array_equal(joined.hashes, whole.hashes)
