"""Reading running text: nothing is lost, whatever the lines and however the bytes arrive."""

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.text import lines
from sglm.text.lines import NOTHING_WAITS, Piece, read_arriving_lines, read_text_lines

printable = st.text(st.sampled_from("ab é中😀 \n\r\u2028\x85"), max_size=60)


@given(text=printable, read_bytes=st.integers(8, 20), cut=st.booleans())
@settings(deadline=None)
def test_pieces_add_up_to_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, read_bytes: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "text.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "READ_BYTES", read_bytes)
        pieces = list(read_text_lines(path, longest_bytes=1 if cut else None))
    assert "".join(piece.text for piece in pieces) == text
    assert not any(piece.ends_document for piece in pieces)
    if cut:
        joined = "".join(piece.text + ("" if piece.unfinished else "|") for piece in pieces)
        pieces = [Piece(part, False) for part in joined.split("|")[:-1]]
    whole = text.split("\n")
    expected = [line + "\n" for line in whole[:-1]] + ([whole[-1]] if whole[-1] else [])
    assert [piece.text for piece in pieces] == expected


def test_long_lines_are_cut_in_front_of_spaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "READ_BYTES", 32)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(["word"] * 100))
    pieces = list(read_text_lines(path, longest_bytes=32))
    assert len(pieces) > 10
    assert all(piece.text.startswith(" word") for piece in pieces[1:])
    assert [piece.unfinished for piece in pieces] == [True] * (len(pieces) - 1) + [False]


def test_offsets_count_what_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "READ_BYTES", 32)
    path = tmp_path / "text.txt"
    path.write_bytes(b"one line\n" + b"word " * 100 + b"\xe9 word")
    with pytest.raises(InputError, match="byte offset 509"):
        list(read_text_lines(path, longest_bytes=32))


def test_compressed_text_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo é\n")
    with gzip.open(tmp_path / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("one\ntwo é\n")
    assert list(read_text_lines(tmp_path / "a.txt")) == list(read_text_lines(tmp_path / "b.txt.gz"))


def test_a_byte_order_mark_is_dropped_at_the_start_only(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo")
    assert [piece.text for piece in read_text_lines(path)] == ["one\n", "\ufefftwo"]


def test_some_control_characters_are_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"a NUL \0 and a bell \a, a form feed \f and an escape \x1b[0m\n")
    assert len(list(read_text_lines(path))) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a fine line\n" * 200_000 + b"caf\xe9\n", "byte offset 2400003"),
        (b"caf\xe9", r"byte offset 3\); sglm reads UTF-8"),
        (b"cut \xe2\x82", "byte offset 4"),
        (b"\0\1\2\3" * 100, r"binary, not text \(byte offset 0\)"),
        ("text\n".encode("utf-16"), "UTF-16"),
        (gzip.compress(b"text " * 1000, mtime=0), "gzip"),
        (b"\x7fELF\x02\x01\x01" + bytes(200), "a program"),
    ],
)
def test_what_is_no_text_is_named_with_its_offset(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"text.txt: .*{message}"):
        list(read_text_lines(path))


@pytest.mark.parametrize("cut", [-30, 0])
def test_broken_gzip_data_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress(bytes(range(100)) * 10)[:cut] or b"plain text")
    with pytest.raises(InputError, match=r"text\.txt\.gz: broken gzip data"):
        list(read_text_lines(path))


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_text_lines(tmp_path / "nothing.txt"))
    with pytest.raises(InputError, match="a folder"):
        list(read_text_lines(tmp_path))


@pytest.mark.parametrize("space", [" ", "\t", "\r", "\u3000", "\xa0", "\x1f"])
def test_a_long_line_is_cut_in_front_of_any_white_space_however_it_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: str
) -> None:
    text = space.join(["word", "日本", "naïve"] * 40) + "\nshort\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = []
    for read_bytes in (8, 64, 1 << 20):  # of which the limit on a line is a bound of its own
        monkeypatch.setattr(lines, "READ_BYTES", read_bytes)
        found.append(list(read_text_lines(tmp_path / "a.txt", longest_bytes=64)))
    assert found[0] == found[1]
    assert len(found[1]) > 10
    assert len(found[2]) == 2
    assert "".join(piece.text for piece in found[1]) == text
    assert all(piece.text.startswith(space) for piece in found[1][1:-1])


def test_what_has_arrived_is_handed_out_before_more_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as stdin, open(writing, "wb", buffering=0) as pipe:
        monkeypatch.setattr(lines.sys, "stdin", stdin)  # type: ignore[attr-defined]
        pieces = read_arriving_lines("-")
        assert next(pieces) is NOTHING_WAITS
        pipe.write(b"\xef\xbb\xbfone\ntwo\nthr")
        for expected in (Piece("one\n", False), Piece("two\n", False), NOTHING_WAITS):
            assert next(pieces) == expected
        pipe.write(b"ee")
        pipe.close()
        assert [piece for piece in pieces if piece is not NOTHING_WAITS] == [Piece("three", False)]


def test_a_byte_order_mark_alone_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    assert list(read_text_lines(tmp_path / "a.txt")) == []
