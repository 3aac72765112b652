"""Writes records with added fields; the fields that they had remain unchanged and in order."""

import datetime
import decimal
import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from sglm.corpus_filter.measures import BUCKET, COUNTS
from sglm.corpus_filter.reading import TEXT, JsonRow, Records, is_parquet
from sglm.errors import InputError
from sglm.text.records import parquet_errors
from sglm.text.sources import TEXT_ENDINGS

if TYPE_CHECKING:
    import pyarrow as pa

Added = Sequence[Mapping[str, float | int | str | None]]
# Bytes of a row group in memory at which it is written.
ROW_GROUP_BYTES = 1 << 25


class Writer(Protocol):
    """A writer of records, which takes them in order."""

    def write(self, records: Records, added: Added) -> None:
        """Writes some records, each with its added fields.

        Raises:
            InputError: A record already has a field of that name, or a value that the format lacks.
        """


@contextmanager
def open_writer(
    aside: Path,
    result: Path,
    *,
    source: Path,
    schema: "pa.Schema | None",
    later: Sequence[str] = (),
) -> Iterator[Writer]:
    """Opens a writer.

    Args:
        aside: File that is written.
        result: Name that the file will get, which decides on the format.
        source: Name of the source in error messages.
        schema: Schema of a parquet file, including the added fields. None: JSON lines.
        later: See `result_schema`.
    """
    if schema is not None:
        import pyarrow.parquet as pq

        with pq.ParquetWriter(aside, schema) as file:
            parquet = _ParquetWriter(file, schema=schema, source=source)
            yield parquet
            parquet.flush()
        return
    with aside.open("wb") as raw:
        if result.name.endswith(".gz"):
            # Without a time in its header, so that equal records give equal bytes.
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                yield _JsonWriter(packed, source=source, later=later)
        else:
            yield _JsonWriter(raw, source=source, later=later)


class _JsonWriter:
    def __init__(
        self, file: IO[bytes] | gzip.GzipFile, *, source: Path, later: Sequence[str]
    ) -> None:
        self.file = file
        self.source = source
        self.later = later

    def write(self, records: Records, added: Added) -> None:
        rows = records.rows
        if not isinstance(rows, list):
            rows = [JsonRow(self._json(row), row) for row in self._values(rows)]
        joined = [self._join(row, dict(fields)) for row, fields in zip(rows, added, strict=True)]
        self.file.write("".join(joined).encode())

    def _join(self, row: JsonRow, fields: dict[str, Any]) -> str:
        """Appends fields to the object as it was written, so that numbers keep their digits."""
        if twice := row.fields.keys() & {*fields, *self.later}:
            raise _field_exists_error(self.source, min(twice))
        before = row.line[:-1].rstrip()
        return f"{before}{', ' if row.fields else ''}{json.dumps(fields)[1:]}\n"

    def _values(self, batch: "pa.RecordBatch") -> list[dict[str, Any]]:
        names = batch.schema.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"{self.source}: {names.count(twice[0])} columns are called {twice[0]!r}, which an"
                " object in JSON cannot have; rename all but one, or leave out --format jsonl"
            )
        try:
            rows: list[dict[str, Any]] = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # times that Python cannot represent
            raise self._not_json_error(error) from error
        return rows

    def _json(self, row: dict[str, Any]) -> str:
        try:
            return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
        except TypeError as error:
            raise self._not_json_error(error) from error

    def _not_json_error(self, error: Exception) -> InputError:
        return InputError(
            f"{self.source}: a value that cannot be written as JSON ({error}); leave out"
            " --format jsonl"
        )


def _plain(value: Any) -> Any:
    """Converts a value of a parquet file for JSON: times and decimals to text, NaN to null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):  # a map is a list of pairs
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        raise TypeError("a column holds bytes")
    return value


def _field_exists_error(source: Path, name: str) -> InputError:
    return InputError(
        f"{source}: its records have a field {name!r} already; give another --prefix for the"
        " added fields"
    )


class _ParquetWriter:
    def __init__(self, file: Any, *, schema: "pa.Schema", source: Path) -> None:
        self.file = file
        self.schema = schema
        self.source = source
        self.waiting: list[pa.RecordBatch] = []

    def write(self, records: Records, added: Added) -> None:
        import pyarrow as pa

        own = [name for name in self.schema.names if added and name in added[0]]
        columns = [
            pa.array([fields[name] for fields in added], self.schema.field(name).type)
            for name in own
        ]
        before = records.rows
        if isinstance(before, list):
            schema = pa.schema([each for each in self.schema if each.name not in own])
            before = pa.RecordBatch.from_pylist([row.fields for row in before], schema)
        batch = pa.RecordBatch.from_arrays([*before.columns, *columns], schema=self.schema)
        self.waiting.append(batch)
        if sum(each.nbytes for each in self.waiting) >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes the waiting records as one row group."""
        import pyarrow as pa

        if self.waiting:
            self.file.write_table(pa.Table.from_batches(self.waiting, self.schema))
            self.waiting = []


def result_schema(
    source: Path,
    records: Iterator[Records],
    result: Path,
    *,
    columns: Mapping[str, str],
    later: Sequence[str] = (),
    text_field: str = TEXT,
) -> "pa.Schema | None":
    """Returns the columns of the result if that is a parquet file, otherwise None.

    Args:
        source: The source. A parquet file states its columns; JSON lines must be read to find them.
        records: Records of the source, from its beginning; they are read only if needed.
        result: Name of the result, which decides on the format.
        columns: The field in each added column (one of `FIELDS`, or `BUCKET`), by column name.
        later: Names of fields that will be added when all files are done, and that the source must
            not have either.
        text_field: Name of the only column of an empty file.

    Raises:
        InputError: The source has a column of that name; a field has several types or a value that
            is too large.
    """
    if not is_parquet(result):
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_parquet(source):
        with parquet_errors(source):
            schema = pq.read_schema(source)
    else:
        schema = _inferred(source, records)
        schema = schema if schema.names else pa.schema([(text_field, pa.string())])
    for name in (*columns, *later):
        if name in schema.names:
            raise _field_exists_error(source, name)
    for name, field in columns.items():
        schema = schema.append(pa.field(name, _type_of(field)))
    return schema


def _type_of(field: str) -> "pa.DataType":
    import pyarrow as pa

    if field == BUCKET:
        return pa.string()
    return pa.int64() if field in COUNTS else pa.float64()


def _inferred(source: Path, records: Iterator[Records]) -> "pa.Schema":
    """Returns a schema with one type for each field that occurs in JSON lines."""
    import pyarrow as pa

    running = source.name.lower().endswith(TEXT_ENDINGS)
    schema = pa.schema([(TEXT, pa.string())] if running else [])
    waiting: list[Any] = []

    def unify() -> "pa.Schema":
        try:
            found = pa.array(waiting, from_pandas=False).type
            fields = pa.schema(list(found)) if waiting else pa.schema([])
            return pa.unify_schemas([schema, fields], promote_options="permissive")
        except (pa.ArrowException, UnicodeError, OverflowError) as error:
            message = str(error).strip().splitlines()[0]
            raise InputError(
                f"{source}: its fields do not fit into a parquet table ({message}); give"
                " --format jsonl"
            ) from None

    for some in records:
        waiting += [row.fields for row in some.rows]
        if len(waiting) >= 1000:
            schema, waiting = unify(), []
    return unify()
