"""Where text comes from: files, folders, stdin, builtin topics, data sets.

Text comes in two shapes: running text, a piece per line (`lines.py`), and records, a piece per
document (`records.py`). Everything is streamed.
"""

import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sglm.errors import InputError, SglmWarning
from sglm.storage.untrusted import read_json
from sglm.text.builtin import builtin_documents
from sglm.text.lines import Piece as Piece
from sglm.text.lines import read_text_lines as read_text_lines
from sglm.text.lines import refuse_special
from sglm.text.records import read_data_set, read_jsonl, read_parquet
from sglm.text.store import is_store

TEXT_ENDINGS = (".txt", ".txt.gz")
RECORD_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
TABLE_ENDINGS = (".xlsx", ".xls", ".ods", ".csv", ".tsv", ".json")
# Advice for files of types that sglm does not read, by the ends of their names.
_CURES = {
    (".docx", ".doc", ".odt", ".rtf", ".pdf", ".epub", ".pptx", ".odp"): (
        "a document with more than text in it; save it as plain text (UTF-8), and name that .txt"
    ),
    TABLE_ENDINGS: (
        'a table or other data; write its texts into a .jsonl file, one a line: {"text": "…"}'
    ),
    (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar", ".bz2", ".xz", ".zst", ".gz"): (
        "packed; unpack it first (.txt.gz and .jsonl.gz are read as they are)"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file or stream: what to call it in messages, and how to read it.

    documents: its pieces are records, not lines.
    once: reading it again is impossible (stdin) or means another download (hf:).
    bytes_on_disk: None where there is no file.
    """

    name: str
    read: Callable[[], Iterator[Piece]]
    documents: bool
    once: bool = False
    bytes_on_disk: int | None = None


def find_sources(
    source: str,
    text_field: str = "text",
    longest_bytes: int | None = None,
    *,
    keep_empty: bool = False,
) -> list[Source]:
    """Everything a SOURCE of the command line stands for, in reading order.

    Args:
        source: a file, a folder (searched deeply, in sorted order, hidden names left out; folders
            in it that sglm wrote are no text, and are skipped with a warning), `-`,
            `builtin:NAME` or `hf:NAME[:CONFIG]`.
        text_field: the field of a record that holds its text.
        longest_bytes: see `read_text_lines`.
        keep_empty: files of no bytes in a folder count too.

    Raises:
        InputError: nothing there, or nothing that can be read. Reading may raise it too.
    """
    if source == "-":
        return [
            Source(
                name="stdin",
                read=lambda: read_text_lines("-", longest_bytes),
                documents=False,
                once=True,
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
                once=True,
            )
        ]
    if not source:  # often an unset shell variable; Path("") would be the current folder
        raise InputError("the name of a source is empty; give a file or folder")
    path = Path(source)
    refuse_special(path)
    if not path.is_dir():
        return [_file(path, text_field, longest_bytes)]
    if (what := _written_by_sglm(path)) is not None:
        raise InputError(f"{source}: {what}; give the text that it was made of")
    files = [
        child
        for child in sorted(_files_below(path))
        if child.name.lower().endswith(TEXT_ENDINGS + RECORD_ENDINGS)
        and child.is_file()
        and (keep_empty or child.stat().st_size > 0)
    ]
    if not files:
        endings = ", ".join(TEXT_ENDINGS + RECORD_ENDINGS)
        raise InputError(f"{source}: no text in this folder; usable files end in {endings}")
    return [_file(child, text_field, longest_bytes) for child in files]


def _written_by_sglm(folder: Path) -> str | None:
    """Describes a folder that sglm wrote; None: it is any other folder."""
    if is_store(folder):
        return "a token store, not text"
    try:
        run = read_json(folder / "run.json")
    except (OSError, ValueError, InputError):
        return None
    is_run = isinstance(run, dict) and "corpus_fingerprint" in run
    return "a run of sglm, not text" if is_run else None


def _files_below(folder: Path) -> Iterator[Path]:
    """All files at any depth, without hidden names and without folders that sglm wrote. Links to
    folders are not followed: they may form a cycle."""
    waiting = [folder]
    while waiting:
        below = waiting.pop()
        if (what := _written_by_sglm(below)) is not None:
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
        bytes_on_disk=path.stat().st_size,
    )


def spooled(source: Source, folder: Path, longest_bytes: int | None) -> Source:
    """The same text from a file in `folder`, where it can be read as often as needed."""
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
