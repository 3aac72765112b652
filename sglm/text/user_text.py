"""Reads texts that a user passes: as a path, an open file, lines, or the text itself."""

import codecs
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from sglm.errors import InputError, short_repr
from sglm.text.lines import READ_BYTES, Piece, line_pieces, lines_of_file, read_text_lines
from sglm.text.sources import RECORD_ENDINGS, TEXT_ENDINGS, find_sources, pieces_in_turn
from sglm.text.tokenizer import Tokenizer, utf8

_LINES = re.compile(r"[^\n]*\n|[^\n]+")


def pieces_of(
    source: str | os.PathLike[str] | Iterable[str | bytes], text_field: str = "text"
) -> tuple[Iterator[Piece], str]:
    """Returns the pieces of a text that a user passes, and its name in messages.

    Args:
        source: A path, an open file, an iterable of lines, or (a str) the text itself.
        text_field: Name of the field of a record that holds its text.

    Raises:
        InputError: A str is the name of a file (which must be passed as a Path), there is nothing
            at the path, or the lines have no order. Reading the pieces may raise it too.
    """
    if not isinstance(text_field, str):
        raise InputError(f"text_field must be a str, but this is {type(text_field).__name__}")
    if isinstance(source, os.PathLike):
        name = os.fsdecode(source)
        if os.path.isfile(name) and not name.lower().endswith(RECORD_ENDINGS):
            # Any other ending means plain text: benchmarks come as .tokens, notes as .md.
            return read_text_lines(name, READ_BYTES), name
        files = find_sources(name, text_field, READ_BYTES)
        return (piece for _, piece in pieces_in_turn(files)), name
    if isinstance(source, str):
        _refuse_name_of_file(source)
        return _pieces_of_lines(line.group() for line in _LINES.finditer(source)), "text"
    refuse_unordered(source)
    if not isinstance(source, Iterable):
        raise InputError(
            f"a text must be a str, a path or lines, but this is {type(source).__name__}"
        )
    if not hasattr(source, "read"):
        return _pieces_of_lines(source), "text"
    name = str(getattr(source, "name", "text"))
    return lines_of_file(_Parts(_parts_of_file(source, name)), name, READ_BYTES), name


def _refuse_name_of_file(text: str) -> None:
    looks_like_one = text.lower().endswith(TEXT_ENDINGS + RECORD_ENDINGS) and " " not in text
    if len(text) < 1024 and "\n" not in text and (looks_like_one or os.path.isfile(text)):
        raise InputError(f"a str is taken as the text itself; for the file, pass Path({text!r})")


def refuse_unordered(texts: object) -> None:
    """Checks that iterating over an object gives texts in a fixed order.

    Raises:
        InputError: It would give keys, column names or numbers instead of texts, or texts in no
            fixed order.
    """
    kind = type(texts).__name__
    if isinstance(texts, bytes | bytearray | memoryview):
        raise InputError(f"{kind} is not text but integers in Python; decode it")
    if isinstance(texts, Mapping | Set) or hasattr(texts, "columns"):
        raise InputError(
            f"{kind}: texts must be in a list, in order; give the one column or value that holds"
            ' them, as in frame["text"].tolist()'
        )


class _Parts:
    """A binary file of UTF-8, made from the parts of a text."""

    def __init__(self, parts: Iterator[str | bytes]) -> None:
        self._parts = parts

    def read1(self, size: int) -> bytes:
        """Returns the next parts, about `size` bytes; b"" after the last one."""
        taken: list[bytes] = []
        while size > 0 and (part := next(self._parts, None)) is not None:
            taken.append(part if isinstance(part, bytes) else utf8(part))
            size -= len(taken[-1])
        return b"".join(taken)


def _pieces_of_lines(lines: Iterable[str | bytes]) -> Iterator[Piece]:
    waiting = ""  # the last line; it ends when another follows, even without a newline
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8") if isinstance(line, bytes) else line
        except UnicodeDecodeError as error:
            raise InputError(f"line {number}: not UTF-8 text ({error.reason})") from error
        if not isinstance(text, str):
            raise InputError(f"line {number} is not text but {type(text).__name__}; give a str")
        if number == 1:
            text = text.removeprefix("\ufeff")  # a byte order mark is not text
        elif not waiting.endswith("\n"):
            waiting += "\n"
        for each in _LINES.findall(waiting):
            yield from line_pieces(each, READ_BYTES)
        waiting = text
    for each in _LINES.findall(waiting):
        yield from line_pieces(each, READ_BYTES)


def _parts_of_file(file: Any, name: str) -> Iterator[str | bytes]:
    """Yields the rest of an open file in parts, with its original line ends.

    Raises:
        InputError: The file cannot be read, or its line ends have already been translated.
    """
    translates = hasattr(file, "reconfigure") and not _keeps_line_ends(file)
    try:
        while part := file.read(READ_BYTES):
            if translates and "\r" in "".join(file.newlines or ()) and "\r" not in part:
                raise InputError(
                    f"{name}: a part of it has been read already, and Python has translated its"
                    ' line ends to LF; open it with newline="", or in binary mode ("rb")'
                )
            yield part
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not {error.encoding.upper()} text ({error.reason}); open it with its"
            " own encoding"
        ) from error
    except (OSError, ValueError) as error:  # it is closed, or open for writing
        raise InputError(f"{name}: cannot be read ({error})") from error


def _keeps_line_ends(file: Any) -> bool:
    """Sets a text file to keep its line ends, and returns whether this was possible. By default,
    Python translates CR LF; once the file has been read from, this may be impossible to change."""
    with suppress(OSError, ValueError, LookupError):
        if codecs.lookup(file.encoding).name == "utf-8":
            file.seek(file.tell())  # drops the read-ahead buffer; fails after next()
    with suppress(OSError, ValueError):
        file.reconfigure(newline="\n")
        return True
    return False


class TextError(InputError):
    """One of many texts cannot be used.

    Attributes:
        number: Number of the text, counted from 1.
        problem: Description of what is wrong with it.
    """

    def __init__(self, number: int, *, problem: str) -> None:
        super().__init__(f"text {number}: {problem}")
        self.number, self.problem = number, problem


def encode_texts(
    tokenizer: Tokenizer, texts: Sequence[str], *, before: str = ""
) -> list[list[int]]:
    """Returns the ids of many texts.

    Args:
        tokenizer: The tokenizer that encodes them.
        texts: The texts, each encoded on its own.
        before: Text that is put before each of them.

    Raises:
        TextError: The tokenizer cannot encode one of them.
    """
    try:
        return tokenizer.encode_batch([before + text for text in texts])
    except InputError:
        for number, text in enumerate(texts, start=1):
            try:
                tokenizer.encode(before + text)
            except InputError as error:
                raise TextError(number, problem=str(error)) from error
        raise


def checked_bytes(text: str, number: int | None = None) -> int:
    """Returns the size of a text in bytes of UTF-8, after checking that it is one.

    Args:
        text: The text.
        number: Number of the text among many, counted from 1. None: it is the only one.

    Raises:
        InputError: It is not a str, or contains half a surrogate pair.
    """
    which = "" if number is None else f"text {number}: "
    if not isinstance(text, str):
        cure = "; decode it" if isinstance(text, bytes) else ""
        raise InputError(f"{which}a text must be a str, but this is {type(text).__name__}{cure}")
    try:
        return len(utf8(text))
    except InputError as error:
        raise InputError(f"{which}{error}") from error


def list_of_texts(texts: object) -> list[Any]:
    """Returns the texts that a user passes as a list, a column of a table or a generator.

    Whether each of them is a text is not checked here; see `checked_bytes`.

    Raises:
        InputError: `texts` is none of these.
    """
    refuse_unordered(texts)
    if isinstance(texts, str):
        raise InputError(
            f"expected a list of texts, but this is one: {short_repr(texts)}; put it into a list"
        )
    if hasattr(texts, "read"):
        raise InputError(
            "this is an open file; for the text as a whole, use perplexity; for its lines one by"
            ' one, pass [line.rstrip("\\n") for line in file]'
        )
    if not isinstance(texts, Iterable):
        raise InputError(f"a text must be a str, but this is {type(texts).__name__}")
    return list(texts)
