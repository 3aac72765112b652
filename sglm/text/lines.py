"""Reads running text: streams the lines of a UTF-8 file or of stdin."""

import gzip
import select
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from sglm.errors import InputError
from sglm.storage.names import CONFIG_FILE, RUN_FILE

READ_BYTES = 1 << 20
# The size limit for a line that must not be cut (it is a text or a record by itself), and so is in
# memory as a whole.
LONGEST_LINE_BYTES = 1 << 25
LONE_SURROGATE = "is half a surrogate pair, not a character"


class ByteFile(Protocol):
    """A binary file to read lines from."""

    def read1(self, size: int, /) -> bytes:
        """Returns some of the bytes that are available; b"" at the end of the file."""


class Piece(NamedTuple):
    """A part of a text that is read, held out and encoded as a whole.

    Attributes:
        text: A line of running text with its newline, or a whole record.
        ends_document: Whether this is a record; running text has no documents.
        unfinished: Whether the line or record continues in the next piece (only if the reader was
            asked to cut very long ones).
    """

    text: str
    ends_document: bool
    unfinished: bool = False


MODEL_FIRST_MESSAGE = "the model comes first, then the text"
# Comes between pieces: all input that has arrived was returned, and the next read would block.
NOTHING_WAITS = Piece("", False, unfinished=True)


def read_text_lines(
    path: Path | str, longest_bytes: int | None = None, most_bytes: int | None = None
) -> Iterator[Piece]:
    """Reads the lines of a UTF-8 text file (`.gz`: compressed) or of stdin (`-`), newlines kept.

    Only "\\n" ends a line. A byte order mark at the start is dropped: some editors write it,
    and it is not text.

    Args:
        path: A file, or `-`.
        longest_bytes: Length above which a line is cut, in bytes; values below 1 MiB count as
            1 MiB. A longer line comes in several pieces, all but the last `unfinished`, cut before
            white space where possible, so that the memory used is bounded. Where a line is cut
            depends on that line alone. None: every line is one piece.
        most_bytes: The (approximate) size limit for lines if they are not cut; a longer one is an
            error. None: `LONGEST_LINE_BYTES`.

    Raises:
        InputError: The file is missing, not UTF-8 (the message has the byte offset), binary or
            broken gzip data, or a line is too long (see above).
    """
    pieces = read_arriving_lines(path, longest_bytes, most_bytes)
    return (piece for piece in pieces if piece is not NOTHING_WAITS)


def read_arriving_lines(
    path: Path | str, longest_bytes: int | None = None, most_bytes: int | None = None
) -> Iterator[Piece]:
    """Reads lines as `read_text_lines` does, and yields `NOTHING_WAITS` whenever the next read of
    stdin would block."""
    with _open(path) as file:
        name = "stdin" if str(path) == "-" else str(path)
        yield from lines_of_file(file, name, longest_bytes, most_bytes=most_bytes)


def lines_of_file(
    file: ByteFile, name: str, longest_bytes: int | None, *, most_bytes: int | None = None
) -> Iterator[Piece]:
    """Reads lines as `read_arriving_lines` does, from an open file that error messages call
    `name`."""
    lines = _lines(
        file, name, longest_bytes=longest_bytes, most_bytes=most_bytes or LONGEST_LINE_BYTES
    )
    for first in lines:
        if first is not NOTHING_WAITS:
            first = first._replace(text=first.text.removeprefix("\ufeff"))
            if first.text:
                yield first
            break
        yield first
    yield from lines


def _open(path: Path | str) -> AbstractContextManager[BufferedIOBase]:
    if str(path) == "-":
        if sys.stdin is None:  # the shell's `<&-`
            raise InputError("stdin is closed; give a file, or pipe text into it")
        return nullcontext(cast(BufferedIOBase, sys.stdin.buffer))
    path = Path(path)
    refuse_special(path)
    if path.is_dir():
        if is_run_or_model(path):
            raise InputError(f"{path}: a model, not a text file; {MODEL_FIRST_MESSAGE}")
        raise InputError(f"{path}: a folder, not a text file")
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")
    return path.open("rb")


def is_run_or_model(path: Path) -> bool:
    """Returns whether a folder looks like one that `sglm train` wrote."""
    return (path / RUN_FILE).is_file() or (path / CONFIG_FILE).is_file()


def refuse_special(path: Path) -> None:
    """Checks that a path is a file or a folder: reading a device may never end, and opening a pipe
    blocks until another process writes into it.

    Raises:
        InputError: The path does not exist, or is neither a file nor a folder.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the path
        raise InputError(f"{path}: no such file or folder") from None
    if stat.S_ISFIFO(mode):
        raise InputError(f"{path}: a pipe; give - and redirect it to stdin (… - < pipe)")
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: a device or a socket, not a file")


def _blocks(file: ByteFile, name: str) -> Iterator[bytes]:
    """Yields blocks of bytes as they become available; b"" when the next read of stdin would
    block."""
    waits_for = _stdin_number(file)
    try:
        while True:
            if waits_for is not None and not select.select([waits_for], [], [], 0)[0]:
                yield b""
            if not (block := file.read1(READ_BYTES)):
                return
            yield block
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{name}: broken gzip data ({error})") from error


def _stdin_number(file: ByteFile) -> int | None:
    """Returns the file descriptor of stdin, for asking the system whether input is available; None
    if `file` is not stdin, or a program has replaced stdin by an object without a descriptor."""
    if file is not getattr(sys.stdin, "buffer", None):
        return None
    try:
        return cast(BufferedIOBase, file).fileno()
    except OSError:
        return None


def _lines(
    file: ByteFile, name: str, *, longest_bytes: int | None, most_bytes: int
) -> Iterator[Piece]:
    longest = None if longest_bytes is None else max(longest_bytes, READ_BYTES)
    offset = 0  # position in the file of the first byte in `waiting`
    waiting: list[bytes] = []  # a line without its end yet, in parts, so that adding copies nothing
    waiting_bytes = 0
    lines_read = 0
    head = b""
    for block in _blocks(file, name):
        if not block:
            yield NOTHING_WAITS
            continue
        if not head:
            head = block
            _refuse_binary(head, name)
        end = block.rfind(b"\n") + 1
        if end:
            raw = b"".join((*waiting, block[:end]))
            for line in _decode(raw, name=name, offset=offset, head=head).split("\n")[:-1]:
                yield from line_pieces(line + "\n", longest)
            offset += len(raw)
            lines_read += raw.count(b"\n")
            waiting, waiting_bytes, block = [], 0, block[end:]
        waiting.append(block)
        waiting_bytes += len(block)
        if longest is None and waiting_bytes > most_bytes:
            raise too_long(f"{name}, line {lines_read + 1}", most_bytes)
        if longest is not None and waiting_bytes > longest:
            raw = b"".join(waiting)
            whole = _whole_characters(raw)
            text = _decode(whole, name=name, offset=offset, head=head)
            *parts, rest = line_pieces(text, longest)
            yield from parts
            left = rest.text.encode() + raw[len(whole) :]
            offset += len(raw) - len(left)
            waiting, waiting_bytes = [left], len(left)
    if waiting_bytes:
        text = _decode(b"".join(waiting), name=name, offset=offset, head=head)
        yield from line_pieces(text, longest)


def _whole_characters(raw: bytes) -> bytes:
    """Returns `raw` without an incomplete character (of three bytes at most) at its end."""
    for left in range(1, min(4, len(raw))):
        if raw[-left] & 0b1100_0000 == 0b1100_0000:
            return raw[:-left]
        if raw[-left] < 0b1000_0000:
            break
    return raw


def line_pieces(line: str, longest_bytes: int | None) -> Iterator[Piece]:
    """Yields a line of running text as one piece, or as several, cut as in `read_text_lines`."""
    start = 0
    while longest_bytes is not None and 4 * (len(line) - start) > longest_bytes:
        # Lone surrogates pass here; they are refused later.
        raw = line[start : start + longest_bytes].encode(errors="surrogatepass")
        if len(raw) <= longest_bytes and start + longest_bytes >= len(line):
            break
        first = _whole_characters(raw[:longest_bytes]).decode(errors="surrogatepass")
        end = start + whole_words(first)
        yield Piece(line[start:end], False, unfinished=True)
        start = end
    yield Piece(line[start:], False)


def whole_words(text: str) -> int:
    """Returns where to cut an unfinished text: before its last white space, so that no word is cut,
    or at its end if it is a single word."""
    end = len(text.rstrip())
    if end == len(text):
        end = len(text.rsplit(None, 1)[0].rstrip()) if len(text.split(None, 1)) > 1 else 0
    return end or len(text)


def too_long(where: str, most_bytes: int) -> InputError:
    """Returns the error about a line or record that is too long to be in memory as a whole."""
    return InputError(
        f"{where}: longer than {most_bytes >> 20} MiB, which is too much for one text; break it"
        " into several"
    )


# The first bytes of common file types other than UTF-8 text; their names, and what to do.
KNOWN_BEGINNINGS = {
    b"\x1f\x8b": "gzip data: give the file an ending in .gz",
    b"\xff\xfe": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    b"PK\x03\x04": "an office document (save it as plain text) or a zip archive (unpack it)",
    b"\xd0\xcf\x11\xe0": "an office document: save it as plain text",
    b"PAR1": "parquet: give the file the ending .parquet",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF: extract its text",
    b"\x28\xb5\x2f\xfd": "zstd data: unpack it",
    b"\xfd7zXZ": "xz data: unpack it",
    b"BZh": "bzip2 data: unpack it",
}
CONTROL_BYTES = bytes(set(range(32)) - set(b"\b\t\n\v\f\r\x1b")) + b"\x7f"


def _refuse_binary(head: bytes, name: str) -> None:
    """Refuses a file if more than a third of its beginning is control characters. A few of them are
    legal: they are UTF-8, and text may contain them. (`perl -T` uses the same rule.)"""
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
