"""A text as a user hands it over: in every form the same pieces, or a refusal in words."""

from pathlib import Path

import pytest

from sglm.errors import InputError
from sglm.text.lines import Piece
from sglm.text.user_text import pieces_of

TEXT = "one\r\ntwo\n\nthree — ünd\x85four"  # CRLF, blank, a line separator that is none of ours


def read_texts(source: object) -> list[str]:
    return [piece.text for piece in pieces_of(source)[0]]  # type: ignore[arg-type]


def test_every_way_gives_the_same_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    path.write_bytes(TEXT.encode())
    lines = ["one\r\n", "two\n", "\n", "three — ünd\x85four"]
    assert read_texts(path) == lines
    assert read_texts(TEXT) == lines
    assert read_texts(lines) == lines
    with path.open(encoding="utf-8") as file:
        assert read_texts(file) == lines
    with path.open("rb") as file:
        assert read_texts(file) == lines


def test_half_a_file_is_the_rest_of_it(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n")
    with path.open() as file:
        file.readline()
        assert read_texts(file) == ["two\n"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n")
    with path.open(encoding="utf-8") as file:
        assert read_texts(file) == read_texts(path) == ["one\n"]


def test_records_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text('{"text": "a\\nb"}\n')
    assert list(pieces_of(path)[0]) == [Piece("a\nb", True)]


def test_a_file_name_is_not_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\n")
    with pytest.raises(InputError, match=r"Path\("):
        pieces_of(str(path))


def test_what_is_no_text_is_named() -> None:
    for source in (b"bytes", ["one\n", 2]):
        with pytest.raises(InputError, match="is no text but int"):
            read_texts(source)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InputError, match="not UTF-8"), path.open(encoding="utf-8") as file:
        read_texts(file)
    with pytest.raises(InputError, match="byte offset 5"), path.open("rb") as file:
        read_texts(file)
