"""Records: one document after the other, from jsonl, parquet and data sets."""

import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sglm.errors import InputError, SglmError, did_you_mean
from sglm.text.lines import (
    LONE_SURROGATE,
    LONGEST_LINE_BYTES,
    READ_BYTES,
    Piece,
    read_text_lines,
    too_long,
)

_PARQUET_ROWS = 64


def _piece_of(record: object, field: str, where: str) -> Piece:
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with a field {field!r}")
    if field not in record:
        known = did_you_mean(field, map(str, record))
        raise InputError(f"{where}: no field {field!r}{known} (--text-field names it)")
    text = record[field]
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise InputError(f"{where}: the field {field!r} is not text but {kind}")
    if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
        raise InputError(f"{where}: {lone.group()!a} {LONE_SURROGATE}")
    return Piece(text, True)


def read_jsonl(path: Path, field: str) -> Iterator[Piece]:
    """One document per line: the `field` of the JSON object on it. Blank lines are skipped.

    Raises:
        InputError: a line that is not such an object (with its number), or far too long; see
            `read_text_lines`.
    """
    for number, line in enumerate(read_text_lines(path), start=1):
        if line.text.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line.text.strip())
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:  # numbers too long, or nested too deeply
            raise InputError(f"{where}: not JSON that can be read ({error})") from error
        yield _piece_of(record, field, where)


def read_parquet(path: Path, field: str) -> Iterator[Piece]:
    """One document per row: the column `field`, a few rows in memory at a time.

    Raises:
        InputError: not a parquet file, no such column, or a row without text or with far too much.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
        if columns.count(field) != 1:
            raise InputError(
                f"{path}: no column {field!r}{did_you_mean(field, columns)} (--text-field names it)"
            )
        # Buffered and not read ahead, or a whole row group would be in memory. As a dictionary, or
        # a text that a small file repeats thousands of times would be in memory as often.
        with pq.ParquetFile(
            path, buffer_size=READ_BYTES, pre_buffer=False, read_dictionary=[field]
        ) as file:
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                for value in batch.column(0):
                    row += 1
                    where = f"{path}, row {row}"
                    yield _piece_of({field: _plain(value, where)}, field, where)
    # Arrow raises OSError for a file that it cannot read, and ArrowMemoryError for one that
    # declares impossible sizes.
    except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({_first_line(error)})") from error


def _plain(value: Any, where: str) -> object:
    """A pyarrow scalar as a Python value."""
    import pyarrow as pa

    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
        size = 0 if (raw := value.as_buffer()) is None else raw.size
        if size > LONGEST_LINE_BYTES:
            raise too_long(where, LONGEST_LINE_BYTES)
    plain: object = value.as_py()
    return plain


def read_data_set(source: str, field: str) -> Iterator[Piece]:
    """The `train` split of a data set on the hub or in a folder, `hf:NAME[:CONFIG]`, streamed.

    Code that comes with a data set is never run.

    Raises:
        InputError: no such data set, no network, no such field.
    """
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise InputError("hf: needs a name, hf:NAME or hf:NAME:CONFIG")
    for number, record in enumerate(_stream(source, name, config or None), start=1):
        yield _piece_of(record, field, f"{source}, record {number}")


def _stream(source: str, name: str, config: str | None) -> Iterator[object]:
    import datasets

    datasets.disable_progress_bars()
    # It logs each of its retries for half a minute; the error at the end is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        records: Iterable[object] = datasets.load_dataset(
            name,
            config,
            split="train",
            streaming=True,
            trust_remote_code=False,  # left out, older versions ask at the terminal
        )
        yield from records
    except SglmError:  # a signal arrived
        raise
    except Exception as error:  # whatever the library, the network or the data set raises
        raise InputError(f"{source}: cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
