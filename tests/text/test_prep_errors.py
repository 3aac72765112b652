"""Bad input through the real command line: one or two lines that name the thing and the cure."""

import errno
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import Result

from sglm.cli import prep
from sglm.errors import InputError
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece
from sglm.text.store import TokenStore
from sglm.text.store_writer import SplitWriter
from tests.conftest import make_text

Run = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder full of things that cannot be used, and a text that can."""
    monkeypatch.chdir(tmp_path)
    good = make_text(200).encode()
    files = {
        "good.txt": good,
        "empty.txt": b"",
        "blank.txt": b"\n" * 100,
        "latin.txt": good + "naïve\n".encode("latin-1"),
        "binary.txt": bytes(range(32)) * 100,
        "zipped.txt": gzip.compress(good),
        "broken.txt.gz": gzip.compress(good)[:-40],
        "line.txt": b"only one line\n",
        "page.html": good,
        "broken.jsonl": b'{"text": "a"}\n{"text": \n',
        "field.jsonl": b'{"txt": "a"}\n',
        "number.jsonl": b'{"text": 5}\n',
        "list.jsonl": b"[1]\n",
        "deep.jsonl": b"[" * 100_000 + b"\n",
        "half.jsonl": b'{"text": "\\ud83d"}\n',
        "fake.parquet": b"hello",
        "folder/readme.md": good,
        "occupied/thesis.md": good,
        "file": b"",
        "bare/blank.jsonl": b"\n",
        "bare/empty.txt.gz": gzip.compress(b""),
        "tiny.model": learn_sentencepiece(make_text(200).split("\n"), None).content(),
        "ids.txt": b"1 2 3\n4 5 6\n" * 100,
        "x.txt": b"1 2\n" * 70 + b"1 x\n" + b"1 2\n" * 70,
        "high.txt": b"1 2\n" * 70 + b"1 99\n" + b"1 2\n" * 70,
        "low.txt": b"1 2\n" * 70 + b"1 -9\n" + b"1 2\n" * 70,
        "x.jsonl": b'{"text": "1 2"}\n' * 70 + b'{"text": "1\\nx"}\n' + b'{"text": "1 2"}\n' * 70,
        "cut.json": b'{"model": {',
        "list.json": b"[]",
        "own/tokenizer.json": b'{"kind": "word", "fingerprint": "0"}',
        "cut.model": b"\x0a\x0e\x0a",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "column.parquet")
    return tmp_path


# What is typed after `sglm prep` (--out is added where it is missing), and what the message holds.
BAD = {
    "missing.txt": "missing.txt: no such file or folder",
    "empty.txt": "empty.txt: empty, it contains no text",
    "blank.txt": "the training text holds no words",
    "blank.txt --tokenizer word": "the training text holds no words",
    "latin.txt": "latin.txt: not UTF-8 text (byte offset {naive})",
    "binary.txt": "binary.txt: binary, not text (byte offset 0)",
    "zipped.txt": "it looks like gzip data: give the file an ending in .gz",
    "broken.txt.gz": "broken.txt.gz: broken gzip data",
    "line.txt": "too few lines or documents to hold some out",
    "page.html": "page.html: unknown kind of file; known endings: .txt",
    "broken.jsonl": "broken.jsonl, line 2: not JSON",
    "field.jsonl": "field.jsonl, line 1: no field 'text'; did you mean 'txt'? (--text-field",
    "number.jsonl": "number.jsonl, line 1: the field 'text' is not text but int",
    "list.jsonl": "list.jsonl, line 1: not an object",
    "deep.jsonl": "deep.jsonl, line 1: not JSON",
    "half.jsonl": "half.jsonl, line 1: '\\ud83d' is half a surrogate pair",
    "fake.parquet": "fake.parquet: not a readable parquet file",
    "column.parquet": "column.parquet: no column 'text'; known: body (--text-field",
    "folder": "folder: no text in this folder; usable files end in .txt",
    "builtin:python-doc": "unknown builtin text; did you mean 'python-docs'?",
    "builtin:python-cod": "unknown builtin text; did you mean 'python-code'?",
    "hf:": "hf: needs a name",
    "-": "stdin: empty",
    "- --valid -": "stdin (-) can be read only once",
    "good.txt --tokenizer wrod": "--tokenizer wrod: unknown; did you mean 'word'?",
    "good.txt --vocab-size 9000": "the largest possible is ",
    "good.txt --vocab-size 9000 --tokenizer word": "the largest possible is ",
    "good.txt --vocab-size 100": "too small for sentencepiece, which needs at least 260",
    "good.txt --vocab-size 2 --tokenizer word": "--vocab-size 2 is too small",
    "good.txt --vocab-size 100 --tokenizer byte": "--vocab-size does not go with --tokenizer byte",
    "good.txt --tokenizer hf": "--tokenizer hf: give hf:FILE",
    "good.txt --tokenizer spm:": "--tokenizer spm:: give spm:FILE",
    "good.txt --tokenizer ids:5": "--tokenizer ids:5: give ids",
    "good.txt --tokenizer hf:gone": "gone: no such file; hf: takes the path of a tokenizer.json",
    "good.txt --tokenizer spm:own": "own: a folder, not a SentencePiece model",
    "good.txt --tokenizer hf:cut.json": "cut.json: not a tokenizer.json, or a damaged one (",
    "good.txt --tokenizer hf:list.json": "list.json: not a tokenizer.json, or a damaged one (it",
    "good.txt --tokenizer hf:own/tokenizer.json": "that sglm made; give --tokenizer-of own",
    "good.txt --tokenizer spm:cut.model": "cut.model: not a SentencePiece model, or a damaged one",
    "good.txt --tokenizer hf:x --vocab-size 9": "--vocab-size does not go with --tokenizer hf:x",
    "good.txt --tokenizer word --eos-id 5": "--eos-id does not go with --tokenizer word",
    "good.txt --tokenizer word --tokenizer-of own": "give --tokenizer or --tokenizer-of, not both",
    "good.txt --tokenizer-of gone": "gone: no such folder; give a run, a model folder or a store",
    "good.txt --tokenizer-of folder": "folder: holds no tokenizer of sglm",
    "good.txt --tokenizer-of own": "own/tokenizer.json: damaged",
    "good.txt --tokenizer-of own --eos-id 1": "--eos-id does not go with --tokenizer-of",
    "good.txt --tokenizer-of own --vocab-size 9": "--vocab-size does not go with --tokenizer-of",
    "ids.txt --tokenizer ids": "--tokenizer ids needs --vocab-size N: the ids are 0 to N - 1",
    "ids.txt --tokenizer ids --vocab-size 1": "--vocab-size 1: it must be at least 2",
    "ids.txt --tokenizer ids --vocab-size 99999999": "and less than 16,777,216",
    "ids.txt --tokenizer ids --vocab-size 5": "ids.txt, line 2: the id 5 is not in the vocabulary",
    "ids.txt --tokenizer ids --vocab-size 9 --eos-id 9": "--eos-id 9: must be one of the ids, 0 to",
    "x.txt --tokenizer ids --vocab-size 9": "x.txt, line 71: 'x' is not an integer",
    "high.txt --tokenizer ids --vocab-size 9": "high.txt, line 71: the id 99 is not in the vocab",
    "low.txt --tokenizer ids --vocab-size 9": "low.txt, line 71: the id -9 is negative",
    "ids.txt --tokenizer ids --vocab-size 9 --test x.txt": "x.txt, line 71: 'x' is not an integer",
    "x.jsonl --tokenizer ids --vocab-size 9": "x.jsonl, record 71: 'x' is not an integer",
    "good.txt --valid 0.5 --test 0.5": "fractions must be at least 0 and leave something",
    "good.txt --valid 1": "fractions must be at least 0 and leave something",
    "good.txt --test nan": "fractions must be at least 0 and leave something",
    "good.txt --valid gone.txt": "gone.txt: no such file or folder",
    "good.txt --test empty.txt": "empty.txt: empty",
    "good.txt good.txt": "good.txt: given twice; give it once",
    "bare": "bare/blank.jsonl: contains no text, nor do the files after it",
    "good.txt --out .": "--out .: is the current folder; give one in it: --out store",
    "good.txt --tokenizer spm:tiny.model --eos-id 0": "--eos-id 0: the tokenizer's unknown token",
    "good.txt --out occupied": "occupied: this folder holds something else",
    "good.txt --out occupied --force": "occupied: this folder holds something else",
    "good.txt --out file": "file: this is not a folder",
    "good.txt --out file/store": "file: this is not a folder",
}


@pytest.mark.parametrize("typed", BAD)
def test_bad_input_is_named_and_nothing_is_left(run_prep: Run, here: Path, typed: str) -> None:
    before = sorted(here.rglob("*"))
    arguments = typed.split() + ([] if "--out" in typed else ["--out", "store"])
    result = run_prep(*arguments)
    assert result.exit_code == 2
    message = result.stderr
    assert message.startswith("sglm: ")
    assert BAD[typed].format(naive=len(make_text(200)) + 2) in message
    assert 1 <= message.count("\n") <= 2
    assert result.stdout == ""
    assert sorted(here.rglob("*")) == before


def test_of_a_folder_what_has_no_text_is_left_out_and_what_cannot_be_read_is_told(
    run_prep: Run, here: Path
) -> None:
    (here / "bare" / "good.txt").write_bytes((here / "good.txt").read_bytes())
    (here / "bare" / "more.txt.zst").write_bytes(b"packed")
    (here / "bare" / "table.csv").write_text("1,2")
    result = run_prep("bare", "--out", "store", "--tokenizer", "word")
    assert result.exit_code == 0, result.stderr
    assert "bare: 2 of its files left out, such as more.txt.zst: packed; unpack" in result.stderr
    assert result.stderr.count("left out") == 1
    assert "skipped" not in run_prep("bare", "--out", "bare/store").stderr


def test_what_is_held_out_must_be_the_same_in_every_pass(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(doing: str, done: int, total: int | None) -> None:
        if doing == "learning the vocabulary":
            Path("good.txt").write_text("another line\n" + make_text(200))

    with pytest.raises(InputError, match="was written to while it was read"):
        prepare(["good.txt"], here / "store", StoreSettings(tokenizer="word"), on_progress=write)
    assert not (here / "store").exists()


def test_held_out_lines_that_are_trained_on_are_told(run_prep: Run, here: Path) -> None:
    (here / "copy.txt").write_bytes((here / "good.txt").read_bytes())
    arguments = ("--test", "0", "--tokenizer", "word", "--out")
    told = run_prep("good.txt", "--valid", "copy.txt", *arguments, "a").stderr
    assert "lines of valid (100%) are in train too" in told
    (here / "half.txt").write_text(
        (here / "good.txt").read_text() + "some words of its own\n" * 999
    )
    (here / "other.txt").write_text("five words that are elsewhere\n" * 9)
    assert (
        "in train too" not in run_prep("good.txt", "--valid", "other.txt", *arguments, "b").stdout
    )


def test_a_held_out_split_without_words_is_told(run_prep: Run, here: Path) -> None:
    (here / "blank.txt").write_text("\n")
    arguments = ("--test", "0", "--tokenizer", "byte", "--out", "a")
    told = run_prep("good.txt", "--valid", "blank.txt", *arguments)
    assert told.exit_code == 0
    assert "valid has no words, so its numbers mean nothing" in told.stderr
    assert "test has no words" not in told.stderr


def test_a_file_system_without_locks(
    run_prep: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert run_prep("good.txt", "--out", "store").exit_code == 0
    assert not list(here.glob(".store*"))


def test_a_missing_package_is_named(
    run_prep: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (here / "own" / "hf.json").write_text('{"model": {}}')
    result = run_prep("good.txt", "--out", "store", "--tokenizer", "hf:own/hf.json")
    assert result.exit_code == 2
    assert result.stderr == (
        "sglm: own/hf.json: a tokenizer.json needs the package tokenizers; install it:"
        " pip install 'sglm[hf]'\n"
    )


def test_an_existing_store_needs_force(run_prep: Run, here: Path) -> None:
    assert run_prep("good.txt", "--out", "store").exit_code == 0
    before = TokenStore.open("store").fingerprint
    result = run_prep("good.txt", "--out", "store", "--tokenizer", "byte")
    assert result.exit_code == 2
    assert "store: a store already exists there; --force replaces it" in result.stderr
    assert TokenStore.open("store").fingerprint == before
    result = run_prep("good.txt", "--out", "store", "--tokenizer", "byte", "--force")
    assert result.exit_code == 0
    assert TokenStore.open("store").tokenizer().kind == "byte"
    assert sorted(path.name for path in (here / "store").iterdir()) == [
        *("meta.json", "test.bin", "test.lines", "tokenizer.json"),
        *("train.bin", "train.lines", "valid.bin", "valid.lines"),
    ]


def test_force_never_deletes_what_is_not_the_stores(run_prep: Run, here: Path) -> None:
    for kind in ("word", "sentencepiece"):
        assert run_prep("good.txt", "--out", kind, "--tokenizer", kind).exit_code == 0
        assert run_prep("good.txt", "--out", kind, "--tokenizer", kind, "--force").exit_code == 0
        (here / kind / "run").mkdir()
        result = run_prep("good.txt", "--out", kind, "--force")
        assert result.exit_code == 2
        assert f"{kind}: holds run besides the store; move it" in result.stderr
        assert (here / kind / "run").is_dir()


def test_a_failing_replacement_leaves_the_old_store(run_prep: Run, here: Path) -> None:
    assert run_prep("good.txt", "--out", "store").exit_code == 0
    before = TokenStore.open("store").fingerprint
    assert run_prep("latin.txt", "--out", "store", "--force").exit_code == 2
    assert TokenStore.open("store").fingerprint == before


def test_a_full_disk_is_named_and_nothing_is_left(
    run_prep: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: SplitWriter) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(here.rglob("*"))
    monkeypatch.setattr(SplitWriter, "_write", full)
    result = run_prep("good.txt", "--out", "store")
    assert result.exit_code == 1
    assert result.stderr.startswith("sglm: no space left on the device")
    assert sorted(here.rglob("*")) == before


def test_progress_goes_to_stderr(
    run_prep: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prep, "SECONDS_BETWEEN_LINES", 0.0)
    result = run_prep("good.txt", "--out", "store", "--json")
    assert json.loads(result.stdout)
    for doing in ("reading train", "learning the vocabulary", "encoding"):
        assert f"{doing}: 0 of 0 MB\n" in result.stderr


def test_json_is_alone_on_stdout(run_prep: Run, here: Path) -> None:
    result = run_prep("good.txt", "--out", "deep/er/store", "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert json.loads(result.stdout)["out"] == "deep/er/store"


def test_the_summary_names_the_next_command(run_prep: Run, here: Path) -> None:
    result = run_prep("good.txt", "--out", "store")
    assert "sglm train tiny --data store" in result.stdout
    rows = {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()[1:]}
    for split in ("train", "valid", "test"):
        assert rows[split] == f"{TokenStore.open('store').counts(split).tokens:,}"
