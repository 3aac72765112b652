"""What a user hands over as a text: a path, an open file, lines, or the text itself."""

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator

from sglm.errors import InputError
from sglm.text.lines import READ_BYTES, Piece, read_text_lines
from sglm.text.sources import RECORD_ENDINGS, find_sources
from sglm.text.tokenizer import utf8


def pieces_of(
    source: str | os.PathLike[str] | Iterable[str | bytes],
) -> tuple[Iterator[Piece], str]:
    """What a user hands over as a text, as pieces, and what to call it.

    Args:
        source: a path, an open file, an iterable of lines, or (a str) the text itself.

    Raises:
        InputError: a str that is the name of a file, surely meant as a path; nothing at the path.
            Reading the pieces may raise it too.
    """
    if isinstance(source, os.PathLike):
        name = os.fspath(source)
        if os.path.isfile(name) and not name.lower().endswith(RECORD_ENDINGS):
            # Plain text, whatever its ending: benchmarks come as .tokens, notes as .md.
            return read_text_lines(name, READ_BYTES), name
        files = find_sources(name, longest_bytes=READ_BYTES)
        return (piece for file in files for piece in file.read()), name
    if not isinstance(source, Iterable):
        raise InputError(f"a text is a str, a path or lines, but this is {type(source).__name__}")
    if isinstance(source, str):
        if len(source) < 1024 and "\n" not in source and os.path.isfile(source):
            raise InputError(f"a str is taken as the text itself; for the file, Path({source!r})")
        source = re.findall(r"[^\n]*\n|[^\n]+", source)
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        # Text files translate \r\n unless told otherwise, and then count fewer bytes.
        source.reconfigure(newline="\n")  # type: ignore[union-attr]
    name = str(getattr(source, "name", "text"))
    return _line_pieces(source, name), name


def _line_pieces(lines: Iterable[str | bytes], name: str) -> Iterator[Piece]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            text = line.decode("utf-8") if isinstance(line, bytes) else line
            if not isinstance(text, str):
                raise InputError(f"{name}: line {number} is no text but {type(text).__name__}")
            if number == 1:
                text = text.removeprefix("\ufeff")  # a byte order mark is not text
            yield Piece(text, ends_document=False)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: not UTF-8 text, line {number} or later ({error.reason})"
        ) from error


def checked_bytes(text: str, number: int | None = None) -> int:
    """How many bytes of UTF-8 a text has.

    Args:
        text: must be one.
        number: which of many it is, counted from 1; None: the only one.

    Raises:
        InputError: not a str, or half a surrogate pair.
    """
    which = "" if number is None else f"text {number}: "
    if not isinstance(text, str):
        raise InputError(f"{which}a text must be a str, but this is {type(text).__name__}")
    try:
        return len(utf8(text))
    except InputError as error:
        raise InputError(f"{which}{error}") from error
