"""Reads records, one document each, from jsonl files, parquet files and data sets."""

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglm.errors import InputError, SglmError, did_you_mean
from sglm.text.lines import (
    LONE_SURROGATE,
    LONGEST_LINE_BYTES,
    READ_BYTES,
    Piece,
    read_text_lines,
    too_long,
)

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_ROWS = 64  # rows read at a time


def text_of(record: object, field: str, where: str) -> str:
    """Returns the text of a record.

    Args:
        record: A JSON value.
        field: Name of the field that holds the text; `a.b` also means the field `b` of the object
            `a`.
        where: Position of the record, for error messages.

    Raises:
        InputError: The record is not an object, or the field is missing or is not text.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: not an object with a field {field!r}")
    try:
        names = _names(record, field)
    except LookupError:
        raise InputError(f"{where}: {_no_such('field', map(str, record), field)}") from None
    return checked_text(reduce(getitem, names, record), field, where)


def _names(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
    """Returns the path of names that leads to a field: the field of exactly that name or else, if
    the name has dots, a field of a nested object: `a.b` is the field `b` of the object `a`.

    Raises:
        LookupError: There is no such field.
    """
    if field in record:
        return (field,)
    for dot in re.finditer(r"\.", field):
        name, rest = field[: dot.start()], field[dot.end() :]
        if isinstance(inside := record.get(name), dict):
            with suppress(LookupError):
                return (name, *_names(inside, rest))
    raise LookupError(field)


def _no_such(what: str, known: Iterable[str], field: str) -> str:
    hint = did_you_mean(field, known)
    return f"no {what} {field!r}{hint} (--text-field chooses it, in Python text_field)"


def checked_text(text: object, field: str, where: str) -> str:
    """Returns the value of a field after checking that it is text.

    Raises:
        InputError: The value is not text, or contains half a surrogate pair.
    """
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise InputError(f"{where}: the field {field!r} is not text but {kind}")
    if not text.isascii() and (lone := re.search("[\ud800-\udfff]", text)):
        raise InputError(f"{where}: {lone.group()!a} {LONE_SURROGATE}")
    return text


def read_jsonl(path: Path, field: str) -> Iterator[Piece]:
    """Reads one document per line: the `field` of the JSON object on it. Blank lines are skipped.

    Raises:
        InputError: A line is not such an object (the message has its number), or is far too long;
            see `read_text_lines`.
    """
    return (Piece(text_of(record, field, where), True) for where, record in read_json_lines(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields the position of each line, for error messages, and its JSON value. Blank lines are
    skipped.

    Raises:
        InputError: A line is not JSON (the message has its number), or is far too long; see
            `read_text_lines`.
    """
    for where, line in json_lines(read_text_lines(path), str(path)):
        yield where, json_value(line, where)


def json_lines(lines: Iterable[Piece], name: str) -> Iterator[tuple[str, str]]:
    """Yields each line that is not blank, stripped, after its position for error messages."""
    for number, line in enumerate(lines, start=1):
        if not line.text.isspace():
            yield f"{name}, line {number}", line.text.strip()


def json_value(line: str, where: str) -> Any:
    """Parses a line as JSON.

    Raises:
        InputError: The line is not JSON.
    """
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error
    except (ValueError, RecursionError) as error:  # numbers too long, or nested too deeply
        raise InputError(f"{where}: not JSON that can be read ({error})") from error


def read_parquet(path: Path, field: str) -> Iterator[Piece]:
    """Reads one document per row: the column `field`, with a few rows in memory at a time.

    Raises:
        InputError: The file is not a parquet file or lacks the column, or a row has no text or far
            too much.
    """
    import pyarrow.parquet as pq

    with parquet_errors(path):
        names = parquet_column(pq.read_schema(path), field, path)
        column = ".".join(names)
        # With a buffer and without pre-reading: otherwise a whole row group would be in memory. The
        # column as a dictionary: otherwise every repetition of a text would be in memory.
        with pq.ParquetFile(
            path, buffer_size=READ_BYTES, pre_buffer=False, read_dictionary=[column]
        ) as file:
            row = 0
            # For the name `a.b`, pyarrow reads a column `a.b` and also the `b` inside a column `a`.
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[column]):
                for text in column_texts(batch, names, f"{path}, row {{}}", first=row + 1):
                    row += 1
                    yield Piece(text, True)


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turns errors of reading a parquet file, inside the block, into `InputError`.

    Raises:
        InputError: Reading the file failed.
    """
    import pyarrow as pa

    try:
        yield
    # Arrow raises OSError for a file that it cannot read, and ArrowMemoryError for one that
    # declares impossible sizes.
    except (pa.ArrowException, OSError, LookupError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable parquet file ({_first_line(error)})") from error


def column_texts(
    batch: "pa.RecordBatch", names: tuple[str, ...], where: str, *, first: int
) -> Iterator[str]:
    """Yields the texts in a column, which may be nested in another column.

    Args:
        batch: A batch of rows.
        names: Path of names to the column, from `parquet_column`.
        where: Template of a row's position in error messages; `{}` becomes the number of the row.
        first: Number of the first row.

    Raises:
        InputError: A row has no text, or far too much.
    """
    for number, value in enumerate(batch.column(names[0]), start=first):
        place = where.format(number)
        for inner in names[1:]:
            value = value[inner] if value.is_valid else value
        yield checked_text(_plain(value, place), ".".join(names), place)


def parquet_column(schema: "pa.Schema", field: str, path: Path) -> tuple[str, ...]:
    """Returns the path of names to the text: one column, or a column and the columns nested in it.

    Raises:
        InputError: There is no such column, or more than one, or it cannot hold text.
    """
    import pyarrow as pa

    if (count := schema.names.count(field)) > 1:
        raise InputError(f"{path}: {count} columns are called {field!r}; rename all but one")
    columns = _columns_of(schema)
    try:
        names = _names(columns, field)
    except LookupError:
        raise InputError(f"{path}: {_no_such('column', schema.names, field)}") from None
    kind = reduce(getitem, names, columns)
    if isinstance(kind, dict) or pa.types.is_nested(kind):
        what = "dict" if isinstance(kind, dict) or pa.types.is_map(kind) else "list"
        raise InputError(f"{path}, row 1: the field {field!r} is not text but {what}")
    return names


def _columns_of(fields: "pa.Schema | pa.StructType") -> dict[str, Any]:
    """Returns the type of each column by its name; for a column with nested columns, a dict of
    their types."""
    import pyarrow as pa

    return {
        each.name: _columns_of(each.type) if pa.types.is_struct(each.type) else each.type
        for each in fields
    }


def _plain(value: Any, where: str) -> object:
    """Converts a pyarrow scalar to a Python value.

    Raises:
        InputError: It is a string that is too long.
    """
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
    """Streams the `train` split of a data set on the Hugging Face hub or in a folder.

    Code that comes with a data set is never run.

    Args:
        source: `hf:NAME` or `hf:NAME:CONFIG`.
        field: Name of the field that holds the text.

    Raises:
        InputError: The data set, the network or the field is missing.
    """
    name, _, config = source.removeprefix("hf:").partition(":")
    if not name:
        raise InputError("hf: needs a name, hf:NAME or hf:NAME:CONFIG")
    for number, record in enumerate(_stream(source, name, config or None), start=1):
        yield Piece(text_of(record, field, f"{source}, record {number}"), True)


def _stream(source: str, name: str, config: str | None) -> Iterator[object]:
    import datasets

    datasets.disable_progress_bars()
    # The library logs each of its retries, for half a minute; the final error is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        records: Iterable[object] = datasets.load_dataset(
            name,
            config,
            split="train",
            streaming=True,
            trust_remote_code=False,  # without this, older versions ask at the terminal
        )
        yield from records
    except SglmError:  # a signal arrived
        raise
    except Exception as error:  # whatever the library, the network or the data set raises
        raise InputError(f"{source}: cannot be read ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
