"""Every kind of source, read piece by piece."""

import gzip
import importlib.util
import json
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from sglm.errors import InputError
from sglm.text.overlap import LineHashes, lines_file
from sglm.text.sources import Piece, find_sources, spooled

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
    texts = [piece.text for piece in read_all(str(tmp_path))]
    assert texts == ["a.txt\n", "r", "b/y.txt\n", "z.txt\n"]


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
        assert lines.lines > 100
        assert lines.overlap(train) < 0.03 * lines.lines


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
