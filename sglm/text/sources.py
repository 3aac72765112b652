"""Finds and reads the sources of text: files, folders, stdin, builtin texts, data sets.

Text comes in two forms: running text, with a piece per line (`lines.py`), and records, with a piece
per document (`records.py`). Everything is streamed.
"""

import json
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sglm.errors import InputError, SglmWarning
from sglm.storage.names import RUN_FILE
from sglm.storage.untrusted import read_json
from sglm.text.builtin import builtin_documents
from sglm.text.lines import Piece as Piece
from sglm.text.lines import read_text_lines as read_text_lines
from sglm.text.lines import refuse_special
from sglm.text.records import read_data_set, read_jsonl, read_parquet
from sglm.text.store import is_store

FILES_OF_SCORES = ("score.json", "errors.json")  # beside the results of `sglm score --out`
TEXT_ENDINGS = (".txt", ".txt.gz")
RECORD_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
TABLE_ENDINGS = (".xlsx", ".xls", ".ods", ".csv", ".tsv", ".json")
# Advice for files of types that sglm does not read, by the endings of their names.
_CURES = {
    (".docx", ".doc", ".odt", ".rtf", ".pdf", ".epub", ".pptx", ".odp"): (
        "a document with more than text in it; save it as plain text (UTF-8), with the ending .txt"
    ),
    TABLE_ENDINGS: (
        'a table or other data; write its texts into a .jsonl file, one per line: {"text": "…"}'
    ),
    (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".gz"): (
        "packed; unpack it first (only .txt.gz and .jsonl.gz can be read packed)"
    ),
}
# In a folder, files of these types may have been meant too. For one that is given by name, the
# error message says how to read it.
_LEFT_OUT = {
    **_CURES,
    (".md", ".markdown", ".rst", ".text", ".asc", ".tex", ".log", ".html", ".htm", ".xml"): (
        "if it is the text that you want, name it .txt"
    ),
}


_URL = re.compile(r"[a-z]+://")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file or stream of text.

    Attributes:
        name: Name in messages.
        read: Function that reads its pieces, from the beginning.
        documents: Whether its pieces are records, not lines.
        read_once: Whether reading it again is impossible (stdin) or means another download (hf:).
        file: The file. None: it is not a file.
        version: Size and modification time of the file when it was found, from `file_version`.
        from_folder: Whether it was found in a folder, and so may contain no text.
    """

    name: str
    read: Callable[[], Iterator[Piece]]
    documents: bool
    read_once: bool = False
    file: Path | None = None
    version: tuple[int, int] | None = None
    from_folder: bool = False

    @property
    def text_bytes(self) -> int | None:
        """The size of a file of plain text; None if the size of the text is not known."""
        packed = self.file is None or self.file.name.lower().endswith(".gz")
        return None if packed or self.version is None or self.documents else self.version[0]

    def has_changed(self) -> bool:
        """Returns whether the file has changed since it was found."""
        return self.file is not None and self.version != file_version(self.file)


def file_version(file: Path) -> tuple[int, int]:
    """Returns size and modification time of a file, which change with its content."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def pieces_in_turn(sources: Iterable[Source]) -> Iterator[tuple[Source, Piece]]:
    """Yields all pieces, each with its source. The end of a file ends its last line: if the newline
    is missing, it is added when another source follows."""
    unended: tuple[Source, Piece] | None = None
    for source in sources:
        for piece in source.read():
            if unended is not None:
                yield unended[0], unended[1]._replace(text=unended[1].text + "\n")
                unended = None
            if piece.ends_document or piece.unfinished or piece.text.endswith("\n"):
                yield source, piece
            else:
                unended = source, piece
    if unended is not None:
        yield unended


def find_sources(
    source: str,
    text_field: str = "text",
    longest_bytes: int | None = None,
    *,
    keep_empty: bool = False,
) -> list[Source]:
    """Returns all that a SOURCE on the command line stands for, in reading order.

    Args:
        source: A file, a folder (searched recursively, in sorted order, without hidden names;
            folders in it that sglm wrote are not text, and are skipped with a warning), `-`,
            `builtin:NAME` or `hf:NAME[:CONFIG]`.
        text_field: Name of the field of a record that holds its text.
        longest_bytes: Length above which lines are cut, in bytes; see `read_text_lines`.
        keep_empty: Whether empty files in a folder count too.

    Raises:
        InputError: There is nothing, or nothing that can be read. Reading may raise it too.
    """
    if source == "-":
        return [
            Source(
                name="stdin",
                read=lambda: read_text_lines("-", longest_bytes),
                documents=False,
                read_once=True,
            )
        ]
    if source.startswith("builtin:"):
        builtin_documents(source)  # an unknown name is refused before anything is read
        return [Source(name=source, read=lambda: builtin_documents(source), documents=True)]
    if source.startswith("hf:"):
        return [
            Source(
                name=source,
                read=lambda: read_data_set(source, text_field),
                documents=True,
                read_once=True,
            )
        ]
    if not source:  # often an unset shell variable; Path("") would mean the current folder
        raise InputError("the name of a source is empty; give a file or folder")
    if _URL.match(source):
        raise InputError(f"{source}: a URL; download it first, and give the file")
    path = Path(source)
    refuse_special(path)
    if not path.is_dir():
        return [_file(path, text_field, longest_bytes)]
    found = _text_files(path, keep_empty=keep_empty)
    return [replace(_file(file, text_field, longest_bytes), from_folder=True) for file in found]


def _text_files(folder: Path, *, keep_empty: bool) -> list[Path]:
    """Returns the files of a folder that can be read.

    Raises:
        InputError: There are none, or sglm wrote the folder.
    """
    if (what := _written_by_sglm(folder)) is not None:
        raise InputError(f"{folder}: {what}; give the text that it was made from")
    below = sorted(_files_below(folder))
    _warn_of_left_out(folder, below)
    files = [
        file
        for file in below
        if file.name.lower().endswith(TEXT_ENDINGS + RECORD_ENDINGS)
        and file.is_file()
        and (keep_empty or file.stat().st_size > 0)
    ]
    if not files:
        endings = ", ".join(TEXT_ENDINGS + RECORD_ENDINGS)
        raise InputError(f"{folder}: no text in this folder; usable files end in {endings}")
    return files


def _warn_of_left_out(folder: Path, files: Sequence[Path]) -> None:
    """Warns if files are left out that may contain text."""
    cures = {
        file: cure
        for file in files
        for endings, cure in _LEFT_OUT.items()
        if file.name.lower().endswith(endings)
        and not file.name.lower().endswith(TEXT_ENDINGS + RECORD_ENDINGS)
        and file.name not in FILES_OF_SCORES
    }
    if cures:
        first, cure = next(iter(cures.items()))
        warnings.warn(
            f"{folder}: {len(cures):,} of its files left out, such as {first.relative_to(folder)}:"
            f" {cure}",
            SglmWarning,
            stacklevel=2,
        )


def _written_by_sglm(folder: Path) -> str | None:
    """Returns a description of a folder that sglm wrote; None for any other folder."""
    if is_store(folder):
        return "a token store, not text"
    try:
        run = read_json(folder / RUN_FILE)
    except (OSError, ValueError, InputError):
        return None
    is_run = isinstance(run, dict) and "corpus_fingerprint" in run
    return "a run of sglm, not text" if is_run else None


def _files_below(folder: Path) -> Iterator[Path]:
    """Yields all files at any depth, except hidden ones and those in folders that are hidden or
    that sglm wrote. Links to folders are not followed: they may form a cycle."""
    waiting = [folder]
    while waiting:
        below = waiting.pop()
        what = _written_by_sglm(below)
        has_scores = (below / FILES_OF_SCORES[0]).is_file() and (below / ".sglm").is_dir()
        if below != folder and has_scores:
            # Such a folder can still be given by itself.
            what = "scores of a text, which would be read twice"
        if what is not None:
            warnings.warn(f"{below}: {what}; skipped", SglmWarning, stacklevel=2)
            continue
        try:
            scanned = os.scandir(below)
        except PermissionError:
            raise InputError(
                f"{below}: no permission to read it; give the files and folders beside it"
            ) from None
        with scanned as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    yield Path(entry.path)


def _file(path: Path, text_field: str, longest_bytes: int | None) -> Source:
    name = path.name.lower()
    if not name.endswith(TEXT_ENDINGS + RECORD_ENDINGS):
        known = ", ".join(TEXT_ENDINGS + RECORD_ENDINGS)
        for endings, cure in _CURES.items():
            if name.endswith(endings):
                raise InputError(f"{path}: {cure}")
        raise InputError(
            f"{path}: unknown kind of file; known endings: {known}. Plain text under another name"
            f" can come through stdin: sglm prep - < {shlex.quote(str(path))}"
        )
    read_records = read_parquet if name.endswith(".parquet") else read_jsonl
    documents = not name.endswith(TEXT_ENDINGS)
    return Source(
        name=str(path),
        read=lambda: (
            read_records(path, text_field) if documents else read_text_lines(path, longest_bytes)
        ),
        documents=documents,
        file=path,
        version=file_version(path),
    )


def spooled(source: Source, folder: Path, longest_bytes: int | None) -> Source:
    """Copies the text of a source to a file in `folder`, and returns a source that reads the copy
    as often as needed."""
    name = f"spool-{len(list(folder.glob('spool-*')))}"
    if source.documents:
        path = folder / f"{name}.jsonl"
        with path.open("w", encoding="ascii") as file:
            file.writelines(json.dumps({"text": piece.text}) + "\n" for piece in source.read())
        copy = _file(path, "text", None)
    else:
        path = folder / f"{name}.txt"
        with path.open("w", encoding="utf-8", newline="") as file:
            file.writelines(piece.text for piece in source.read())
        copy = _file(path, "text", longest_bytes)
    return replace(copy, name=source.name)
