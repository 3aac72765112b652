"""A text as a user hands it over: in every form the same pieces, or a refusal in words."""

import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.text.lines import Piece
from sglm.text.user_text import list_of_texts, pieces_of

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
        with pytest.raises(InputError, match="is not text but int"):
            read_texts(source)


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(InputError, match="not UTF-8"), path.open(encoding="utf-8") as file:
        read_texts(file)
    with pytest.raises(InputError, match="byte offset 5"), path.open("rb") as file:
        read_texts(file)


CRLF = "header\r\nthe cat\r\nnaïve 日本\r\n"


@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n"])
@pytest.mark.parametrize("begun", ["not", "by readline", "by next"])
def test_line_ends_of_an_open_file_are_kept_or_it_is_refused(
    tmp_path: Path, newline: str | None, begun: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(CRLF.encode())
    with path.open(encoding="utf-8", newline=newline) as file:
        if begun == "by readline":
            file.readline()
        elif begun == "by next":
            next(file)
        expected = CRLF if begun == "not" else CRLF.removeprefix("header\r\n")
        if newline is None and begun == "by next":  # then Python has translated what follows
            with pytest.raises(InputError, match='newline=""'):
                read_texts(file)
        else:
            assert "".join(read_texts(file)) == expected


def test_a_file_of_another_encoding_is_read_as_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    for encoding in ("utf-16", "utf-32", "gb18030"):
        path.write_bytes(CRLF.encode(encoding))
        with path.open(encoding=encoding) as file:
            assert "".join(read_texts(file)) == CRLF


def test_whatever_can_be_read_or_gives_lines_is_a_text(tmp_path: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(CRLF.encode()))
    with gzip.open(packed) as as_bytes, gzip.open(packed, "rt", encoding="utf-8") as as_text:
        sources = [
            *(as_bytes, as_text, io.StringIO(CRLF), io.BytesIO(CRLF.encode())),
            *(iter(CRLF.splitlines(keepends=True)), np.array(CRLF.splitlines(keepends=True))),
        ]
        for source in sources:
            assert "".join(read_texts(source)) == CRLF


def test_what_has_no_order_of_lines_is_refused() -> None:
    class Frame:
        columns = ("text",)

        def __iter__(self) -> Iterator[str]:
            return iter(self.columns)

    for source in ({"text": "a"}, {"a\n", "b\n"}, Frame()):
        for take in (read_texts, list_of_texts):
            with pytest.raises(InputError, match="tolist"):
                take(source)


def test_lines_may_lack_their_newlines() -> None:
    assert "".join(read_texts(CRLF.removesuffix("\n").split("\n"))) == CRLF.removesuffix("\n")
    assert read_texts(["one", "", "two\n", "three"]) == ["one\n", "\n", "two\n", "three"]


def test_lines_end_with_their_file(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one\ntwo"), ("b.txt", "three\n"), ("c.txt", "four")):
        (tmp_path / name).write_text(text)
    assert read_texts(tmp_path) == ["one\n", "two\n", "three\n", "four"]


def test_a_name_of_a_file_that_is_not_there_is_no_text() -> None:
    with pytest.raises(InputError, match=r"Path\('tset.txt'\)"):
        pieces_of("tset.txt")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with path.open("w") as file, pytest.raises(InputError, match="cannot be read"):
        read_texts(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_texts(file)  # closed by now
