"""Every kind of source, read piece by piece."""

import gzip
import importlib.util
import json
import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from sglm.errors import InputError, SglmWarning
from sglm.text.lines import read_text_lines
from sglm.text.overlap import LineHashes, lines_file
from sglm.text.sources import Piece, find_sources, spooled
from tests.conftest import make_text

RECORDS = [f"document {i}\nits second line" for i in range(600)]


def read_all(source: str, field: str = "text") -> list[Piece]:
    return [piece for each in find_sources(source, field) for piece in each.read()]


def write_jsonl(path: Path, records: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": 1, field: text}) + "\n" for text in records))
    return path


def test_a_record_is_a_document_in_jsonl_and_parquet(tmp_path: Path) -> None:
    expected = [Piece(text, True) for text in RECORDS]
    assert read_all(str(write_jsonl(tmp_path / "a.jsonl", RECORDS))) == expected
    assert read_all(str(write_jsonl(tmp_path / "b.jsonl", RECORDS, "body")), "body") == expected
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert read_all(str(tmp_path / "c.jsonl.gz")) == expected
    pq.write_table(pa.table({"n": range(600), "text": RECORDS}), tmp_path / "d.parquet")
    assert read_all(str(tmp_path / "d.parquet")) == expected


def test_blank_lines_of_jsonl_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "é"}\r\n\n{"text": ""}')
    assert read_all(str(path)) == [Piece("é", True), Piece("", True)]


def test_a_folder_is_its_usable_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("z.txt", "b/y.txt", "a.txt", ".hidden/x.txt", "notes.md", ".w.txt"):
        (tmp_path / name).write_text(f"{name}\n")
    (tmp_path / "c.txt").write_text("")
    write_jsonl(tmp_path / "b" / "r.jsonl", ["r"])
    with pytest.warns(SglmWarning, match=r"1 of its files left out, such as notes\.md: .* \.txt"):
        texts = [piece.text for piece in read_all(str(tmp_path))]
    assert texts == ["a.txt\n", "r", "b/y.txt\n", "z.txt\n"]


def test_an_address_is_told_to_be_downloaded() -> None:
    with pytest.raises(InputError, match=r"https://x\.org/a\.txt: a URL; download it first"):
        read_all("https://x.org/a.txt")


def test_the_standard_library_is_code_without_tests_and_tables() -> None:
    pieces = read_all("builtin:python-code")
    texts = [piece.text for piece in pieces]
    assert all(piece.ends_document for piece in pieces)
    assert all(texts)
    assert 4e6 < sum(map(len, texts)) < 16e6
    for module in ("argparse", "json.decoder", "asyncio.base_events"):
        source = importlib.util.find_spec(module).loader.get_source(module)  # type: ignore[union-attr]
        assert texts.count(source) == 1, module
    for module in ("encodings.cp1252", "pydoc_data.topics", "html.entities", "unittest.test"):
        spec = importlib.util.find_spec(module)
        if spec is not None:
            assert spec.loader.get_source(module) not in texts, module  # type: ignore[union-attr]
    # Whoever installed more modules has the same text.
    assert not any("import torch" in text for text in texts)
    assert read_all("builtin:python-code") == pieces


def test_a_python_without_source_text_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match="comes without its modules' source text"):
        read_all("builtin:python-code")


def test_the_builtin_text_is_there(run_prep: Callable[..., Result], tmp_path: Path) -> None:
    pieces = read_all("builtin:python-docs")
    assert len(pieces) > 50
    assert all(piece.ends_document for piece in pieces)
    result = run_prep("builtin:python-docs", "--out", tmp_path / "s", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["splits"]["train"]["bytes"] > 300_000
    # Topics contain one another; what is held out is not trained on as well. What is left are
    # lines that everybody writes ("Traceback (most recent call last):").
    files = (tmp_path / "s" / lines_file(split) for split in ("train", "valid", "test"))
    train, *held_out = map(LineHashes.read, files)
    for lines in held_out:
        assert lines is not None
        assert train is not None
        assert lines.line_count > 100
        assert lines.overlap(train) < 0.03 * lines.line_count


def test_stdin_is_read_once_and_makes_the_same_store(
    run_prep: Callable[..., Result], text_file: Path, tmp_path: Path
) -> None:
    from_file, from_stdin = tmp_path / "file", tmp_path / "stdin"
    assert run_prep(text_file, "--out", from_file).exit_code == 0
    result = run_prep("-", "--out", from_stdin, stdin=text_file.read_bytes())
    assert result.exit_code == 0
    for path in from_file.iterdir():
        assert (from_stdin / path.name).read_bytes() == path.read_bytes()
    assert len(list(from_stdin.iterdir())) == len(list(from_file.iterdir()))


def test_a_spooled_source_reads_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\n\ntwo\u2028 é")
    write_jsonl(tmp_path / "b.jsonl", RECORDS)
    spool = tmp_path / "spool"
    spool.mkdir()
    for name in ("a.txt", "b.jsonl"):
        [source] = find_sources(str(tmp_path / name))
        copy = spooled(source, spool, None)
        assert list(copy.read()) == list(source.read()) == list(copy.read())
        assert copy.name == source.name


def test_a_data_set_is_streamed(
    start_prep: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    write_jsonl(tmp_path / "set" / "train.jsonl", RECORDS)
    out = tmp_path / "store"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    process = start_prep(f"hf:{tmp_path / 'set'}", "--out", out, "--json", **offline)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    splits = json.loads(stdout)["splits"]
    assert sum(split["bytes"] for split in splits.values()) == sum(map(len, RECORDS))


def test_an_unreachable_data_set_is_one_clear_line(
    start_prep: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    process = start_prep("hf:no-such/set", "--out", tmp_path / "store", **offline)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2
    assert stderr.decode().startswith("sglm: hf:no-such/set: cannot be read")
    assert stderr.count(b"\n") == 1


def test_a_null_in_a_column_names_its_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, row 2: .* null"):
        read_all(str(tmp_path / "a.parquet"))


def write_table(path: Path, **columns: object) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_a_name_with_dots_is_a_column_of_that_name_or_one_inside_another(tmp_path: Path) -> None:
    both = write_table(tmp_path / "a.parquet", **{"a": [{"b": "in"}], "a.b": ["flat"]})
    inside = write_table(tmp_path / "b.parquet", a=[{"b": "in", "c": {"d.e": "deep"}}])
    assert read_all(both, "a.b") == [Piece("flat", True)]
    assert read_all(inside, "a.b") == [Piece("in", True)]
    assert read_all(inside, "a.c.d.e") == [Piece("deep", True)]
    lines = tmp_path / "c.jsonl"
    lines.write_text('{"a": {"b": "in"}, "a.b": "flat"}\n{"a": {"b": "in"}}\n')
    assert read_all(str(lines), "a.b") == [Piece("flat", True), Piece("in", True)]
    for path, said in ((inside, "no column 'a.x'"), (str(lines), "line 1: no field 'a.x'")):
        with pytest.raises(InputError, match=said):
            read_all(path, "a.x")


def test_columns_beside_the_text_may_be_of_any_kind(tmp_path: Path) -> None:
    maps = pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string()))
    columns = {"l": [["a"], []], "s": [{"text": "no"}] * 2, "m": maps, "text": ["one", "two"]}
    path = write_table(tmp_path / "a.parquet", **columns)
    assert [piece.text for piece in read_all(path)] == ["one", "two"]
    for column, kind in (("l", "list"), ("s", "dict"), ("m", "dict")):
        with pytest.raises(InputError, match=f"row 1: the field '{column}' is not text but {kind}"):
            read_all(path, column)


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="2 columns are called 'text'"):
        read_all(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl", "x.parquet", "x.md"])
def test_a_pipe_is_not_opened_but_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)  # so that whoever opens it does not wait
    try:
        with pytest.raises(InputError, match=f"{name}: a pipe; give -"):
            read_all(str(path))
        with pytest.raises(InputError, match=f"{name}: a pipe; give -"):
            list(read_text_lines(path))
    finally:
        os.close(held)


def test_what_sglm_wrote_into_a_folder_of_text_is_skipped_and_said(
    tmp_path: Path, run_prep: Callable[..., Result]
) -> None:
    (tmp_path / "book.txt").write_text(make_text(200))
    run = tmp_path / "runs" / "old"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"format_version": 1, "corpus_fingerprint": "0"}')
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    assert run_prep(tmp_path, "--out", tmp_path / "data", "--tokenizer", "byte").exit_code == 0
    (tmp_path / "data" / "notes.txt").write_text("no text")
    with pytest.warns(SglmWarning) as warned:
        assert [Path(source.name).name for source in find_sources(str(tmp_path))] == ["book.txt"]
    said = sorted(str(warning.message) for warning in warned)
    assert said[0].endswith("data: a token store, not text; skipped")
    assert said[1].endswith("old: a run of sglm, not text; skipped")
    result = run_prep(tmp_path, "--out", tmp_path / "again", "--tokenizer", "byte")
    assert f"sglm: {run}: a run of sglm, not text; skipped\n" in result.stderr
    for folder, kind in ((run, "a run"), (tmp_path / "data", "a token store")):
        result = run_prep(folder, "--out", tmp_path / "new")
        assert (result.exit_code, kind in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("a.docx", "save it as plain text"),
        ("a.ODT", "save it as plain text"),
        ("a.csv", ".jsonl"),
        ("a.txt.bz2", "unpack it"),
        ("my notes.md", "sglm prep - < '"),
    ],
)
def test_a_file_of_another_kind_is_told_with_its_own_cure(
    tmp_path: Path, name: str, cure: str
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError) as refused:
        find_sources(str(tmp_path / name))
    assert cure in str(refused.value)
