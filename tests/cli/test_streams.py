"""Standard streams as shells and clusters hand them over: closed, full, of an 8-bit encoding."""

import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.text.store import TokenStore
from tests.conftest import make_text
from tests.tiny_models import save_lm


def run(arguments: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """`sglm` with arguments and redirections as a shell has them."""
    return subprocess.run(
        f"{shlex.quote(sys.executable)} -m sglm.cli.main {arguments}",
        shell=True,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_what_an_encoding_lacks_is_written_as_an_escape(tmp_path: Path, encoding: str) -> None:
    folder = tmp_path / "naïve–模型"
    save_lm("byte", folder)
    (folder / "text.txt").write_text(make_text(100), encoding="utf-8")
    escaped = "naïve\\u2013\\u6a21\\u578b" if encoding == "latin-1" else "na\\xefve\\u2013"
    runner = CliRunner(charset=encoding)
    text = str(folder / "text.txt")
    for command in (
        ["eval", str(folder), "--text", text],
        ["prep", text, "--out", str(folder / "store"), "--tokenizer", "byte"],
        ["generate", str(folder), "--prompt", "naïve–模型", "--tokens", "0"],
    ):
        result = runner.invoke(app, command)
        assert result.exit_code == 0, result.output
        assert escaped in result.stdout_bytes.decode(encoding)
    assert TokenStore.open(folder / "store").splits == ("train", "valid", "test")
    result = runner.invoke(app, ["eval", str(folder / "模"), "--text", text])
    assert (result.exit_code, "\\u6a21" in result.stderr) == (2, True)
    for command in ("prep", "train", "eval", "score", "generate", "compare"):
        result = runner.invoke(app, [command, "--help"])
        assert result.exit_code == 0, command
        result.stdout_bytes.decode(encoding)


def test_closed_streams_take_everything_and_no_file_is_opened_in_their_place(
    tmp_path: Path,
) -> None:
    (tmp_path / "book.txt").write_text(make_text(100), encoding="utf-8")
    done = run("prep book.txt --out store --tokenizer byte <&- >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert TokenStore.open(tmp_path / "store").splits == ("train", "valid", "test")
    # What a library writes to the number of stdout does not end up in a file.
    intruder = (
        "import os, sys; from sglm.cli.streams import prepare_streams; prepare_streams();"
        "file = open('model', 'wb'); os.write(1, b'warning'); os.write(2, b'warning');"
        "print('lost'); file.write(b'whole'); file.close()"
    )
    subprocess.run(
        f'{shlex.quote(sys.executable)} -c "{intruder}" >&- 2>&-', shell=True, cwd=tmp_path
    )
    assert (tmp_path / "model").read_bytes() == b"whole"
    done = run("prep - --out other <&-", tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"stdin is closed" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", ["--version", "eval --help"])
def test_a_full_disk_behind_stdout_is_a_line(tmp_path: Path, arguments: str) -> None:
    done = run(f"{arguments} > /dev/full", tmp_path)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"no space left" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["prep", "", "--out", "new"],
        ["prep", "book.txt", "--out", ""],
        ["prep", "book.txt", "-o", ""],
        ["prep", "book.txt", "--out", "new", "--valid", ""],
        ["prep", "book.txt", "--out", "new", "--text-field="],
        ["train", "", "--data", "store", "--out", "new"],
        ["train", "tiny", "--data", "", "--out", "new"],
        ["train", "tiny", "--data", "store", "--out", ""],
        ["eval", "", "--data", "store"],
        ["eval", "model", "--data", ""],
        ["eval", "model", "--text="],
        ["score", "model", ""],
        ["score", ""],
        ["generate", ""],
        ["compare", "tiny", "--data", "store", "--out", ""],
    ],
    ids=" ".join,
)
def test_an_empty_argument_is_not_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    save_lm("byte", tmp_path / "model")
    save_lm("byte", tmp_path)  # what an empty name would be taken for
    (tmp_path / "book.txt").write_text(make_text(100), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "is empty" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_prompt_is_one(tmp_path: Path) -> None:
    folder = save_lm("byte", tmp_path / "model")
    for prompt in (["--prompt", ""], ["--prompt="]):
        result = CliRunner().invoke(app, ["generate", str(folder), *prompt, "--json"])
        assert json.loads(result.stdout)["prompt"] == ""


def test_whoever_writes_one_line_gets_its_score_at_once(tmp_path: Path) -> None:
    folder = save_lm("byte", tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-m", "sglm.cli.main", "score", str(folder), "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    gives_up = threading.Timer(60, process.kill)
    gives_up.start()
    with process.stdin, process.stdout:
        for texts in (["the cat"], ["a dog", "und", "so"]):
            process.stdin.write("".join(f"{text}\n" for text in texts).encode())
            process.stdin.flush()
            scored = [json.loads(process.stdout.readline())["text"] for _ in texts]
            assert scored == texts
        process.stdin.close()
        assert process.wait() == 0
    gives_up.cancel()


def test_a_reader_of_stderr_that_has_gone_does_not_end_the_work(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "book.txt").write_text(make_text(100), encoding="utf-8")
    run_folder = tmp_path / "text" / "run"  # of which a line is said
    run_folder.mkdir()
    (run_folder / "run.json").write_text('{"corpus_fingerprint": ""}')
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stderr:
        arguments = ["prep", "text", "--out", "store", "--tokenizer", "byte"]
        done = subprocess.run(
            [sys.executable, "-m", "sglm.cli.main", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            check=False,
        )
    assert (done.returncode, b"store" in done.stdout) == (0, True)
    assert TokenStore.open(tmp_path / "store").splits == ("train", "valid", "test")


def test_a_locale_that_cannot_read_an_argument_is_named(tmp_path: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = run("prep naïve.txt --out store", tmp_path, **ascii_only)
    assert done.returncode == 2
    assert b"set LC_ALL=C.UTF-8" in done.stderr
