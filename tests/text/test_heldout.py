"""What is held out: the right amount, from everywhere, in one piece, the same every time."""

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sglm.errors import InputError
from sglm.text.heldout import TEST, TRAIN, VALID, Division, divide
from sglm.text.lines import Piece
from sglm.text.sources import Source, find_sources
from tests.conftest import make_text


def lines_of(texts: Sequence[str]) -> Source:
    return Source(
        name="lines", read=lambda: (Piece(text, False) for text in texts), documents=False
    )


def documents_of(texts: Sequence[str]) -> Source:
    return Source(
        name="documents", read=lambda: (Piece(text, True) for text in texts), documents=True
    )


def quiet(count: int) -> None:
    pass


def divided(*sources: Source, valid: float = 0.05, test: float = 0.05, seed: int = 0) -> Division:
    return divide(sources, valid=valid, test=test, seed=seed, on_bytes=quiet)


def bytes_of_splits(division: Division) -> dict[int, int]:
    sizes = {TRAIN: 0, VALID: 0, TEST: 0}
    for split, piece in division.pieces(quiet):
        sizes[split] += len(piece.text.encode())
    return sizes


LINES = [f"line number {i} of the text\n" for i in range(20_000)]


@pytest.mark.parametrize(("valid", "test"), [(0.05, 0.05), (0.2, 0.01), (0.1, 0.0), (0.0, 0.4)])
def test_fractions_of_running_text_are_met(valid: float, test: float) -> None:
    division = divided(lines_of(LINES), valid=valid, test=test)
    sizes = bytes_of_splits(division)
    total = sum(sizes.values())
    assert total == division.total_bytes == sum(map(len, LINES))
    assert sizes[TRAIN] == division.train_bytes
    # A block is a twentieth of the smallest share, so the rounding stays within 5 % of it.
    assert sizes[VALID] == pytest.approx(valid * total, rel=0.05)
    assert sizes[TEST] == pytest.approx(test * total, rel=0.05)


def test_held_out_lines_hang_together_and_come_from_everywhere() -> None:
    splits = [s for s, _ in divided(lines_of(LINES)).pieces(quiet)]
    groups = 1 + sum(a != b for a, b in pairwise(splits))
    assert groups < 100  # 2000 held-out lines, scattered one by one, would make about 3800
    for split in (VALID, TEST):
        quarters = [splits[start : start + 5000].count(split) for start in range(0, 20_000, 5000)]
        assert min(quarters) > 0


def test_documents_are_never_divided_and_an_enormous_one_is_not_held_out() -> None:
    rng = random.Random(0)
    texts = ["x" * rng.randint(10, 2000) for _ in range(300)] + ["y" * 100_000]
    rng.shuffle(texts)
    division = divided(documents_of(texts))
    pieces = list(division.pieces(quiet))
    assert [piece.text for _, piece in pieces] == texts
    sizes = bytes_of_splits(division)
    assert sizes[VALID] == pytest.approx(0.05 * division.total_bytes, rel=0.1)
    assert sizes[TEST] == pytest.approx(0.05 * division.total_bytes, rel=0.1)
    assert all(split == TRAIN for split, piece in pieces if "y" in piece.text)


def test_an_unfinished_line_stays_with_its_beginning() -> None:
    def pieces() -> Iterator[Piece]:
        for i in range(300):
            yield Piece(f"{i} " + "x" * 50, False, unfinished=True)
            yield Piece(" y" * 25, False, unfinished=True)
            yield Piece(f" end of {i}\n", False)

    source = Source(name="long", read=pieces, documents=False)
    drawn = list(divided(source, valid=0.2, test=0.2).pieces(quiet))
    assert {split for split, _ in drawn} == {TRAIN, VALID, TEST}
    for start in range(0, len(drawn), 3):
        assert len({split for split, _ in drawn[start : start + 3]}) == 1


def test_the_seed_alone_decides() -> None:
    source = lines_of(LINES[:2000])

    def splits(seed: int) -> list[int]:
        return [split for split, _ in divided(source, valid=0.1, test=0.1, seed=seed).pieces(quiet)]

    assert splits(0) == splits(0)
    assert splits(0) != splits(1)


def test_each_split_depends_on_its_own_fraction_only() -> None:
    source = documents_of([f"document {i}" for i in range(500)])

    def held_out(wanted: int, valid: float, test: float) -> list[str]:
        division = divided(source, valid=valid, test=test)
        return [piece.text for split, piece in division.pieces(quiet) if split == wanted]

    assert held_out(VALID, 0.1, 0.0) == held_out(VALID, 0.1, 0.3)
    assert held_out(TEST, 0.0, 0.1) == held_out(TEST, 0.3, 0.1)


def test_documents_among_lines_are_still_drawn_one_by_one() -> None:
    documents = documents_of([f"document {i}" for i in range(1000)])
    # Blocks of the lines are long enough to hold dozens of the documents.
    drawn = list(divided(lines_of(LINES), documents, valid=0.2, test=0.2).pieces(quiet))
    splits = [split for split, piece in drawn if piece.ends_document]
    assert sum(a != b for a, b in pairwise(splits)) > 300  # 560 expected of independent draws


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_few_units_are_enough(count: int) -> None:
    sizes = bytes_of_splits(divided(lines_of(LINES[:count])))
    assert min(sizes.values()) > 0


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_are_a_clear_error(count: int) -> None:
    with pytest.raises(InputError, match="too few lines or documents"):
        divided(lines_of(LINES[:count]))


def test_an_empty_source_is_named() -> None:
    with pytest.raises(InputError, match="documents: empty"):
        divided(lines_of(LINES), documents_of(["", ""]), valid=0.0, test=0.0)


def test_progress_adds_up() -> None:
    reported: list[int] = []
    divide([lines_of(LINES * 5)], valid=0.05, test=0.05, seed=0, on_bytes=reported.append)
    assert sum(reported) == sum(map(len, LINES)) * 5
    assert len(reported) > 1


def test_what_is_held_out_does_not_depend_on_how_a_text_is_packed_or_named(tmp_path: Path) -> None:
    text = make_text(2000)
    raw, half = text.encode(), text.index("\n", len(text) // 2) + 1
    (tmp_path / "plain.txt").write_bytes(raw)
    (tmp_path / "of another name.txt").write_bytes(raw)
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(raw))
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + raw)
    (tmp_path / "ends.txt").write_bytes(raw.replace(b"\n", b"\r\n"))
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "a.txt").write_bytes(raw[:half])
    (tmp_path / "parts" / "b.txt.gz").write_bytes(gzip.compress(raw[half:]))
    held_out = {}
    for path in sorted(tmp_path.iterdir()):
        sources = find_sources(str(path), longest_bytes=1 << 20)
        drawn = divided(*sources, valid=0.1, test=0.03).pieces(quiet)
        held_out[path.name] = [(split, piece.text.replace("\r", "")) for split, piece in drawn]
    assert len(held_out) == 6
    assert {split for split, _ in held_out["plain.txt"]} == {TRAIN, VALID, TEST}
    for name, found in held_out.items():
        assert found == held_out["plain.txt"], name


def test_records_are_held_out_by_their_order_whatever_they_lie_in(tmp_path: Path) -> None:
    texts = [f"document {n}, which says\nsomething" for n in range(400)]
    lines = "".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines))
    pq.write_table(pa.table({"text": texts}), tmp_path / "c.parquet")
    found = [
        list(divided(*find_sources(str(path))).pieces(quiet)) for path in sorted(tmp_path.iterdir())
    ]
    assert found[0] == found[1] == found[2]
