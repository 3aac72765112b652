"""Running text: the lines of a UTF-8 file or of stdin, streamed."""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple, cast

from sglm.errors import InputError

READ_BYTES = 1 << 20
# Of a line that is a text or a record by itself, and so is in memory as a whole.
LONGEST_LINE_BYTES = 1 << 25
LONE_SURROGATE = "is half a surrogate pair, not a character"


class Piece(NamedTuple):
    """A part of a text that is read, held out and encoded as one.

    text: a line of running text with its newline, or a whole record.
    ends_document: true for a record; running text has no documents.
    unfinished: the line or record goes on in the next piece (only where the reader was asked to
        cut enormous ones).
    """

    text: str
    ends_document: bool
    unfinished: bool = False


def read_text_lines(
    path: Path | str, longest_bytes: int | None = None, most_bytes: int | None = None
) -> Iterator[Piece]:
    """The lines of a UTF-8 text file (`.gz`: compressed) or of stdin (`-`), newlines kept.

    Only "\\n" ends a line. A byte order mark at the start is dropped: editors put it there, it is
    not text.

    Args:
        path: a file, or `-`.
        longest_bytes: None gives every line as one piece. Otherwise a line longer than this many
            bytes (1 MiB at least) comes in several pieces, all but the last `unfinished`, cut in
            front of a space where there is one: memory stays bounded whatever the lines are.
        most_bytes: a line that is not cut may not be longer (about); None: `LONGEST_LINE_BYTES`.

    Raises:
        InputError: no such file, not UTF-8 (with the byte offset), binary, broken gzip data, or a
            line that is too long (see above).
    """
    with _open(path) as file:
        name = "stdin" if str(path) == "-" else str(path)
        lines = _lines(
            file, name, longest_bytes=longest_bytes, most_bytes=most_bytes or LONGEST_LINE_BYTES
        )
        for first in lines:
            yield first._replace(text=first.text.removeprefix("\ufeff"))
            break
        yield from lines


def _open(path: Path | str) -> AbstractContextManager[BufferedIOBase]:
    if str(path) == "-":
        if sys.stdin is None:  # the shell's `<&-`
            raise InputError("stdin is closed; give a file, or pipe text into it")
        return nullcontext(cast(BufferedIOBase, sys.stdin.buffer))
    path = Path(path)
    if not path.is_file():
        problem = "a folder, not a text file" if path.is_dir() else "no such file"
        if path.is_fifo():
            problem = "a pipe; give - and redirect it to stdin (… - < pipe)"
        raise InputError(f"{path}: {problem}")
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")


def _blocks(file: BufferedIOBase, name: str) -> Iterator[bytes]:
    try:
        while block := file.read1(READ_BYTES):  # what is there: stdin may come slowly
            yield block
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name}: broken gzip data ({error})") from error


def _lines(
    file: BufferedIOBase, name: str, *, longest_bytes: int | None, most_bytes: int
) -> Iterator[Piece]:
    offset = 0  # of the first byte in `waiting`
    waiting: list[bytes] = []  # a line not yet ended, in parts: adding to it must not copy it
    waiting_bytes = 0
    lines_read = 0
    head = b""
    for block in _blocks(file, name):
        if not head:
            head = block
            _refuse_binary(head, name)
        end = block.rfind(b"\n") + 1
        if end:
            raw = b"".join((*waiting, block[:end]))
            for line in _decode(raw, name=name, offset=offset, head=head).split("\n")[:-1]:
                yield Piece(line + "\n", False)
            offset += len(raw)
            lines_read += raw.count(b"\n")
            waiting, waiting_bytes, block = [], 0, block[end:]
        waiting.append(block)
        waiting_bytes += len(block)
        if longest_bytes is None and waiting_bytes > most_bytes:
            raise too_long(f"{name}, line {lines_read + 1}", most_bytes)
        if longest_bytes is not None and waiting_bytes > max(longest_bytes, READ_BYTES):
            raw = b"".join(waiting)
            cut = _cut_index(raw)
            text = _decode(raw[:cut], name=name, offset=offset, head=head)
            yield Piece(text, False, unfinished=True)
            offset += cut
            waiting, waiting_bytes = [raw[cut:]], len(raw) - cut
    if waiting_bytes:
        yield Piece(_decode(b"".join(waiting), name=name, offset=offset, head=head), False)


def too_long(where: str, most_bytes: int) -> InputError:
    """The error about a line or record that is more than may be in memory as a whole."""
    return InputError(
        f"{where}: longer than {most_bytes >> 20} MiB, which is too much for one text; break it"
        " into several"
    )


def _cut_index(raw: bytes) -> int:
    """Where to cut a line: in front of the last run of spaces, over which no tokenizer joins text.

    Without a space, in front of the last character (a word of 1 MiB need not stay whole).
    """
    space = raw.rfind(b" ")
    if space > 0 and (cut := len(raw[:space].rstrip(b" "))) > 0:
        return cut
    cut = len(raw) - 1
    while cut > 1 and raw[cut] & 0b1100_0000 == 0b1000_0000:  # inside a character of UTF-8
        cut -= 1
    return cut


# How files that are no text begin, and what to do about them.
KNOWN_BEGINNINGS = {
    b"\x1f\x8b": "gzip data: give the file an ending in .gz",
    b"\xff\xfe": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "parquet: give the file the ending .parquet",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF: extract its text",
    b"\x28\xb5\x2f\xfd": "zstd data: unpack it",
    b"\xfd7zXZ": "xz data: unpack it",
    b"BZh": "bzip2 data: unpack it",
}
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b")) + b"\x7f"


def _refuse_binary(head: bytes, name: str) -> None:
    """Refuses a file of which a third or more is control characters; a few are legal UTF-8, and
    text may hold them. (The measure that `perl -T` uses.)
    """
    head = head[:8192]
    if 3 * (len(head) - len(head.translate(None, CONTROL_BYTES))) > len(head):
        first = next(offset for offset, byte in enumerate(head) if byte in CONTROL_BYTES)
        raise InputError(f"{name}: binary, not text (byte offset {first}){_looks_like(head)}")


def _looks_like(head: bytes) -> str:
    for beginning, kind in KNOWN_BEGINNINGS.items():
        if head.startswith(beginning):
            return f"; it looks like {kind}"
    return ""


def _decode(raw: bytes, *, name: str, offset: int, head: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        hint = _looks_like(head) or "; sglm reads UTF-8: convert it, for example with iconv"
        first = offset + error.start
        raise InputError(f"{name}: not UTF-8 text (byte offset {first}){hint}") from error
