"""Reads texts, one per line, from a file or stdin, in batches."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sglm.cli.streams import announce_terminal

if TYPE_CHECKING:
    from sglm.text.lines import Piece

# The lines and characters that are scored and printed together. More would hardly be faster; memory
# does not grow with the input.
BATCH_LINES = 1000
BATCH_CHARACTERS = 1_000_000
# A line of 8 MiB with one token per byte took 1.4 GB of memory, or 2.7 GB with --json --per-token.
LONGEST_LINE_BYTES = 1 << 22


def read_batches(file: Path, *, command: str, ends: str = "") -> Iterator[list[str]]:
    """Reads the lines of a file, or of stdin as they arrive, many at a time.

    Args:
        file: The file; `-` is stdin.
        command: The command that reads a text from stdin, for an error message.
        ends: The end of the error message about a file of records: another cure.

    Raises:
        InputError: The file does not exist, is a model, a folder, records or a table. Reading may
            raise it too (see `read_arriving_lines`).
    """
    from sglm.errors import InputError
    from sglm.text.lines import MODEL_FIRST_MESSAGE, is_run_or_model, read_arriving_lines
    from sglm.text.sources import RECORD_ENDINGS, TABLE_ENDINGS

    if str(file) == "-":
        announce_terminal()
    elif not file.exists():
        raise InputError(
            f"{file}: no such file; to give a text itself:"
            f" echo {shlex.quote(str(file))} | {command}"
        )
    elif is_run_or_model(file):
        raise InputError(f"{file}: a model, not lines of text; {MODEL_FIRST_MESSAGE}")
    elif file.is_dir() or file.name.lower().endswith((*RECORD_ENDINGS, *TABLE_ENDINGS)):
        kind = "a folder" if file.is_dir() else "records or a table"
        raise InputError(
            f"{file}: {kind}, not lines of text; write the texts alone, one per line, into a .txt"
            f" file{ends}"
        )
    return _batches(read_arriving_lines(file, most_bytes=LONGEST_LINE_BYTES))


@contextmanager
def numbered(file: Path, lines_before: int) -> Iterator[None]:
    """Inside, an error about a text of a batch names its line in the file.

    Args:
        file: The file; `-` is stdin.
        lines_before: The number of lines in earlier batches.
    """
    from sglm.errors import InputError
    from sglm.text.user_text import TextError

    try:
        yield
    except TextError as error:
        name = "stdin" if str(file) == "-" else file
        raise InputError(f"{name}, line {lines_before + error.number}: {error.problem}") from error


def _batches(lines: Iterator["Piece"]) -> Iterator[list[str]]:
    """Yields many lines at a time; fewer if no more have arrived yet."""
    from sglm.text.lines import NOTHING_WAITS

    batch: list[str] = []
    characters = 0
    for line in lines:
        if line is not NOTHING_WAITS:
            batch.append(line.text.removesuffix("\n").removesuffix("\r"))
            characters += len(line.text)
        full = len(batch) >= BATCH_LINES or characters >= BATCH_CHARACTERS
        if batch and (full or line is NOTHING_WAITS):
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
