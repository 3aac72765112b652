"""Sources: text, gzip, jsonl and parquet of any content; folders with links; bombs."""

import gzip
import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.scoring.evaluate import evaluate_pieces
from sglm.scoring.results import Context
from sglm.text import lines as lines_module
from sglm.text import records as records_module
from sglm.text.lines import READ_BYTES, read_text_lines
from sglm.text.prepare import LONGEST_WORD_CHARACTERS, StoreSettings, learn_words, prepare
from sglm.text.records import read_jsonl, read_parquet
from sglm.text.sources import find_sources
from sglm.text.store import TokenStore
from tests.fuzz.examples import (
    EXTREMES,
    TEXTS,
    VALUES,
    dumped,
    examples,
    may_be_refused,
    one_of_these,
    spoilt,
)
from tests.tiny_models import make_lm

FileOf = Callable[[str, bytes], Path]
KINDS = st.sampled_from(["sentencepiece", "word", "char", "byte"])
WHOLE = "the cat sat\r\n\n日本語 🙂\u202e\0 end".encode()
BYTES = st.one_of(spoilt(WHOLE), st.binary(max_size=100), TEXTS.map(lambda t: t.encode()))


@given(raw=BYTES, cut=st.booleans())
@examples(100)
def test_lines_add_up_to_the_text(file_of: FileOf, raw: bytes, cut: bool) -> None:
    path = file_of("a.txt", raw)
    try:
        pieces = list(read_text_lines(path, READ_BYTES if cut else None))
    except InputError as error:
        assert any(word in str(error) for word in ("not UTF-8", "binary"))
        return
    assert "".join(piece.text for piece in pieces) == raw.decode().removeprefix("\ufeff")
    assert all(piece.text.endswith("\n") for piece in pieces[:-1])


@given(raw=st.one_of(spoilt(gzip.compress(WHOLE) * 2), st.binary(max_size=60)))
@examples(100)
def test_any_gzip_is_read_or_refused(file_of: FileOf, raw: bytes) -> None:
    path = file_of("a.txt.gz", raw)
    try:
        text = "".join(piece.text for piece in read_text_lines(path))
    except InputError:
        return
    assert len(text.encode()) <= 1000 * len(raw)


RECORDS = st.lists(
    st.one_of(
        VALUES.map(dumped),
        st.builds(lambda text: dumped({"text": text}), st.one_of(TEXTS, VALUES)),
        one_of_these(EXTREMES),
    ),
    max_size=4,
)


@given(raw=st.one_of(RECORDS.map(b"\n".join), spoilt(b'{"text": "one"}\r\n\n{"text": "two"}')))
@examples(120)
def test_any_jsonl_gives_texts_or_is_refused_with_its_line(file_of: FileOf, raw: bytes) -> None:
    path = file_of("a.jsonl", raw)
    with may_be_refused(path):
        for piece in read_jsonl(path, "text"):
            piece.text.encode()
            assert piece.ends_document


def parquet(columns: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


TABLE = parquet({"text": ["one", "two 🙂"], "n": [1, 2]}, compression="none")


@given(raw=st.one_of(spoilt(TABLE), spoilt(TABLE[-400:]).map(lambda end: TABLE[:-400] + end)))
@examples(80)
def test_any_parquet_is_read_or_refused(file_of: FileOf, raw: bytes) -> None:
    path = file_of("a.parquet", raw)
    with may_be_refused(path):
        for piece in read_parquet(path, "text"):
            piece.text.encode()


COLUMNS: dict[str, Any] = {
    "numbers": [1, 2],
    "nothing": [None, None],
    "bytes": [b"\xff", b"a"],
    "lists": [["a"], []],
    "tables": [{"text": "a"}, {"text": "b"}],
    "not UTF-8": pa.array([b"\xff\xfe"], pa.binary()).view(pa.string()),
    "categories": pa.array([1, 2]).dictionary_encode(),
}


@pytest.mark.parametrize("what", COLUMNS)
def test_a_column_that_is_no_text_is_refused(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet({"text": COLUMNS[what]}))
    with pytest.raises(InputError, match=r"a\.parquet"):
        list(read_parquet(tmp_path / "a.parquet", "text"))


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: str) -> None:
    texts = pa.array(["one", "two 🙂", "one"])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    (tmp_path / "a.parquet").write_bytes(parquet({"text": column, "a.b": column}))
    for field in ("text", "a.b"):
        read = [piece.text for piece in read_parquet(tmp_path / "a.parquet", field)]
        assert read == texts.to_pylist()


def test_folders_with_circles_pipes_and_great_depth_are_read(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("text\n")
    (tmp_path / "around").symlink_to(tmp_path)
    (tmp_path / "circle.txt").symlink_to("circle.txt")
    (tmp_path / "nowhere.txt").symlink_to("nothing")
    (tmp_path / "endless.txt").symlink_to("/dev/zero")
    (tmp_path / "linked.txt").symlink_to("good.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    inside = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1100):  # deeper than Python may recurse
        os.mkdir("d", dir_fd=inside)
        deeper = os.open("d", os.O_RDONLY, dir_fd=inside)
        os.close(inside)
        inside = deeper
    os.close(os.open("deep.txt", os.O_CREAT | os.O_WRONLY, dir_fd=inside))
    os.close(inside)
    try:
        names = [Path(source.name).name for source in find_sources(str(tmp_path))]
        assert names == ["good.txt", "linked.txt"]  # deep.txt is empty
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize(
    "name", ["a\0b.txt", "\udcff.txt", "hf:", "builtin:../../x", "", "/dev/zero"]
)
def test_a_strange_name_of_a_source_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        [list(source.read()) for source in find_sources(name)]


@given(data=st.data(), kind=KINDS, ending=st.sampled_from(["txt", "jsonl"]))
@examples(60)
def test_whatever_is_prepared_opens(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, kind: str, ending: str
) -> None:
    folder = tmp_path_factory.mktemp("prep")
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=6))
    raw = "\n".join(texts).encode()
    if ending == "jsonl":
        raw = b"\n".join(dumped({"text": text}) for text in texts)
    (folder / f"a.{ending}").write_bytes(raw)
    try:
        store = prepare(
            [str(folder / f"a.{ending}")], folder / "store", StoreSettings(tokenizer=kind)
        )
    except InputError as error:
        assert len(str(error)) < 1000
        assert not (folder / "store").exists()
        return
    ids = store.ids("train")
    assert int(ids.max()) < TokenStore.open(folder / "store").tokenizer().vocab_size


def test_words_of_a_megabyte_are_not_kept_in_memory() -> None:
    long, short = "x" * (LONGEST_WORD_CHARACTERS + 1), "y" * LONGEST_WORD_CHARACTERS
    tokenizer = learn_words([f"{short} {long} a a"], None)
    assert tokenizer.encode(f"a {short} {long}") == [2, 3, 1]


# What a compressed file unpacks to, by how it is read. Each prints how much memory that took.
BOMBS = """
import sys
from pathlib import Path
import pyarrow.parquet
from sglm.errors import InputError
from sglm.text.lines import READ_BYTES, read_text_lines
from sglm.text.records import read_jsonl, read_parquet

def peak():
    [line] = [l for l in open("/proc/self/status") if l.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

how, path = sys.argv[1], Path(sys.argv[2])
before = peak()
try:
    if how == "pieces":
        assert sum(len(piece.text) for piece in read_text_lines(path, READ_BYTES)) == 100_000_000
    elif how == "lines":
        list(read_text_lines(path))
    elif how == "jsonl":
        list(read_jsonl(path, "text"))
    elif how == "parquet":
        assert sum(len(piece.text) for piece in read_parquet(path, "text")) == 100_000_000
except InputError as error:
    print(error, file=sys.stderr)
print(peak() - before)
"""


def bomb(path: Path, beginning: bytes, unit: bytes, times: int) -> None:
    """A small file that unpacks to a large one."""
    packer = zlib.compressobj(wbits=31)
    with path.open("wb") as file:
        file.write(packer.compress(beginning))
        for _ in range(times):
            file.write(packer.compress(unit))
        file.write(packer.flush())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("how", "limit_mb", "message"),
    # Measured: 9, 36, 36 and 19 MB, for blocks of a megabyte, a line up to the longest there may
    # be, and a batch of rows. Each holds 100 MB.
    [
        ("pieces", 20, ""),
        ("lines", 60, "line 1: longer than 32 MiB"),
        ("jsonl", 60, "line 1: longer than 32 MiB"),
        ("parquet", 45, ""),
    ],
)
def test_what_a_bomb_unpacks_to_is_not_held_in_memory(
    tmp_path: Path, how: str, limit_mb: int, message: str
) -> None:
    if how == "parquet":
        path = tmp_path / "a.parquet"
        # One text of a megabyte, a hundred times.
        path.write_bytes(parquet({"text": ["x" * 1_000_000] * 100}))
    else:
        path = tmp_path / ("a.jsonl.gz" if how == "jsonl" else "a.txt.gz")
        bomb(path, b'{"text": "' if how == "jsonl" else b"", b"x" * 1_000_000, 100)
    assert path.stat().st_size < 2_000_000
    done = subprocess.run(
        [sys.executable, "-c", BOMBS, how, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert message in done.stderr
    assert int(done.stdout) < limit_mb * 1e6


def test_a_line_that_is_a_text_by_itself_may_not_be_enormous(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (lines_module, records_module):  # each has its own name for it
        monkeypatch.setattr(module, "LONGEST_LINE_BYTES", 2 * READ_BYTES)
    long = "x" * (4 * READ_BYTES)
    (tmp_path / "a.txt").write_text(f"one\ntwo\n{long}\n")
    (tmp_path / "a.jsonl").write_text("\n" + json.dumps({"text": long}))
    (tmp_path / "a.parquet").write_bytes(parquet({"text": ["one", long]}))
    with pytest.raises(InputError, match=r"a\.txt, line 3: longer than 2 MiB"):
        list(read_text_lines(tmp_path / "a.txt"))
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: longer than 2 MiB"):
        list(read_jsonl(tmp_path / "a.jsonl", "text"))
    with pytest.raises(InputError, match=r"a\.parquet, row 2: longer than 2 MiB"):
        list(read_parquet(tmp_path / "a.parquet", "text"))
    pieces = list(read_text_lines(tmp_path / "a.txt", READ_BYTES))
    assert "".join(piece.text for piece in pieces) == f"one\ntwo\n{long}\n"


@pytest.mark.parametrize("context", ["carried", "reset"])
def test_a_text_is_evaluated_by_lines_only_where_these_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch, context: Context
) -> None:
    lm = make_lm("byte")
    pieces = [lines_module.Piece("x" * 40, False, unfinished=True)] * 3
    monkeypatch.setattr("sglm.scoring.evaluate.LONGEST_TEXT", 100)
    if context == "carried":
        assert evaluate_pieces(lm.predictor, lm.tokenizer, pieces, context=context).tokens == 120
    else:
        with pytest.raises(InputError, match="more than 100 tokens"):
            evaluate_pieces(lm.predictor, lm.tokenizer, pieces, context=context)
