"""Reads a file of a corpus with all fields of its records, a few records at a time."""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sglm.text.lines import READ_BYTES, ByteFile, lines_of_file
from sglm.text.records import (
    PARQUET_ROWS,
    column_texts,
    json_lines,
    json_value,
    parquet_column,
    parquet_errors,
    text_of,
)
from sglm.text.sources import TEXT_ENDINGS

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[float], None]
TEXT = "text"  # the field that a line of running text becomes


class Records(NamedTuple):
    """Some records, in order.

    Attributes:
        texts: The text of each record.
        rows: The records themselves: JSON objects, or rows of a parquet file.
    """

    texts: list[str]
    rows: "list[JsonRow] | pa.RecordBatch"


class JsonRow(NamedTuple):
    """A JSON object: the line as it was written, and its fields."""

    line: str
    fields: dict[str, Any]


def is_parquet(path: Path) -> bool:
    """Whether a file is a parquet file, by its name."""
    return path.name.lower().endswith(".parquet")


def read_records(path: Path, text_field: str, progress: Progress) -> Iterator[Records]:
    """Yields all records of a file. A line of running text is a record, too.

    Args:
        path: File that ends in `.txt`, `.jsonl` (both also with `.gz`) or `.parquet`.
        text_field: Name of the field that holds the text, see `text_of`.
        progress: Called with the share of the file that has been read.

    Raises:
        InputError: The file is damaged, or a record has no text; the message names the record.
    """
    if is_parquet(path):
        yield from _parquet_records(path, text_field, progress)
        return
    for where, line in _lines(path, progress):
        if where is None:
            fields = {TEXT: line}
            yield Records([line], [JsonRow(json.dumps(fields, ensure_ascii=False), fields)])
        else:
            fields = json_value(line, where)
            yield Records([text_of(fields, text_field, where)], [JsonRow(line, fields)])


def _lines(
    path: Path, progress: Progress, most_bytes: int | None = None
) -> Iterator[tuple[str | None, str]]:
    """Yields the lines: `(None, line)` of running text, or `(position, line)` of JSON lines."""
    running = path.name.lower().endswith(TEXT_ENDINGS)
    size = path.stat().st_size or 1
    with path.open("rb") as raw:
        packed = path.name.lower().endswith(".gz")
        file = gzip.GzipFile(fileobj=raw) if packed else raw
        pieces = lines_of_file(cast(ByteFile, file), str(path), None, most_bytes=most_bytes)
        if running:
            lines: Iterator[tuple[str | None, str]] = (
                (None, piece.text.removesuffix("\n").removesuffix("\r")) for piece in pieces
            )
        else:
            lines = iter(json_lines(pieces, str(path)))
        for where, line in lines:
            progress(raw.tell() / size)
            yield where, line


def _parquet_records(path: Path, text_field: str, progress: Progress) -> Iterator[Records]:
    import pyarrow.parquet as pq

    with (
        parquet_errors(path),
        pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file,
    ):
        names = parquet_column(file.schema_arrow, text_field, path)
        row, rows = 0, file.metadata.num_rows or 1
        for batch in file.iter_batches(batch_size=PARQUET_ROWS):
            texts = list(column_texts(batch, names, f"{path}, row {{}}", first=row + 1))
            row += len(texts)
            progress(row / rows)
            yield Records(texts, batch)


def read_values(
    path: Path, name: str, progress: Progress
) -> Iterator[tuple[Records, list[float | None]]]:
    """Yields the records of a file that sglm has written, without texts, and one field of each."""
    if not is_parquet(path):
        # Not limited: escapes and other fields make a line longer than its text, which was limited.
        for _, line in _lines(path, progress, sys.maxsize):
            fields = json.loads(line)
            yield Records([], [JsonRow(line, fields)]), [fields[name]]
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
        rows = file.metadata.num_rows or 1
        for number, batch in enumerate(file.iter_batches(batch_size=PARQUET_ROWS), start=1):
            progress(min(1.0, number * PARQUET_ROWS / rows))
            yield Records([], batch), batch.column(name).to_pylist()
