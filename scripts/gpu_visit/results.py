"""The JSON-lines file of a visit, one line per cell, and its log."""

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sglm.errors import InputError

Record = dict[str, Any]


class Results:
    """The results of a visit; every line is on the disk before the next cell starts.

    Args:
        folder: The folder of `visit.jsonl` and `visit.log`; made if it does not exist.
        earlier: Files of earlier visits, whose cells are not to be measured again.

    Raises:
        InputError: The folder cannot be written.

    Attributes:
        cells: All known records, by `(part, cell)`; if a cell has several lines, the last counts.
    """

    def __init__(self, folder: Path, earlier: Iterable[Path] = ()) -> None:
        self.path, self.log_path = folder / "visit.jsonl", folder / "visit.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.open("ab").close()
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written ({error.strerror}); give another --out, or $OUT"
            ) from None
        self.cells: dict[tuple[str, str], Record] = {}
        for path in (*earlier, self.path):
            self.cells |= {(each["part"], each["cell"]): each for each in read(path)}

    def of_part(self, part: str) -> dict[str, Record]:
        """Returns a part's known records, by cell; without errors, which are to be tried again."""
        return {
            cell: record
            for (of, cell), record in self.cells.items()
            if of == part and "error" not in record
        }

    def add(self, record: Record) -> None:
        """Appends the record of a cell, and shows it."""
        record = {"when": time.strftime("%Y-%m-%d %H:%M:%S"), **record}
        self.cells[record["part"], record["cell"]] = record
        _append(self.path, json.dumps(record))
        self.log(f"{record['part']}: {record['cell']}: {short(record)}")

    def log(self, line: str) -> None:
        """Writes a line for people to stderr and to the log."""
        print(line, file=sys.stderr, flush=True)
        _append(self.log_path, f"{time.strftime('%H:%M:%S')} {line}")


def read(path: Path) -> list[Record]:
    """Reads the records of a file, without lines that were cut off; none if there is no file."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            record["part"], record["cell"]
        except (ValueError, TypeError, KeyError):
            continue
        records.append(record)
    return records


def short(record: Record) -> str:
    """Returns the values of a record, rounded, on one line."""
    told = {"part", "cell", "when", "seconds", "rehearsal"}
    values = {name: value for name, value in record.items() if name not in told}
    text = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )
    return text if len(text) <= 200 else f"{text[:199]}…"


def _append(path: Path, line: str) -> None:
    # If the last line was cut off, it stays a line of its own.
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
