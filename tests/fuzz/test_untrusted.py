"""Small files of others: bounded, ordinary, and JSON as the standard defines it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.errors import InputError, printable, short_repr
from sglm.storage.untrusted import is_count, is_sha256, parse_json, read_bounded, read_json
from tests.fuzz.examples import EXTREMES, VALUES, dumped, examples, one_of_these, spoilt


@given(VALUES)
@examples(60)
def test_json_is_read_as_it_was_written_or_refused(value: object) -> None:
    raw = dumped(value)
    try:
        parsed = parse_json(raw)
    except ValueError:
        assert any(word in raw for word in (b"NaN", b"Infinity"))  # nothing else is refused
    else:
        assert json.dumps(parsed).encode() == raw


@given(st.one_of(one_of_these(EXTREMES), spoilt(b'{"a": [1.5, true, {"b": "c"}], "d": null}')))
@examples(60)
def test_any_bytes_are_parsed_or_refused(raw: bytes) -> None:
    try:
        parse_json(raw)
    except ValueError as error:
        assert len(str(error)) < 300


REFUSED = {
    "a key twice": b'{"a": 1, "a": 2}',
    "infinite": b"1e999",
    "not a number": b"NaN",
    "many digits": b"9" * 5000,
    "deep": b"[" * 10**6,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_pythons_reader_accepts_is_refused(what: str) -> None:
    raw = REFUSED[what]
    with pytest.raises(ValueError, match=r"twice|finite|digits|deep"):
        parse_json(raw)


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "endless", "."):
        with pytest.raises(InputError, match="not an ordinary file"):
            read_bounded(tmp_path / name, 100)
    with pytest.raises(InputError, match="leads nowhere"):
        read_bounded(tmp_path / "circle", 100)


def test_a_large_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # a hole of a terabyte, which takes no disk
    with pytest.raises(InputError, match="larger than the 1 MiB"):
        read_json(tmp_path / "large")
    (tmp_path / "fits").write_bytes(b"7" * 100)
    assert read_bounded(tmp_path / "fits", 100) == b"7" * 100
    (tmp_path / "linked").symlink_to("fits")
    assert read_bounded(tmp_path / "linked", 100) == b"7" * 100


@given(VALUES)
@examples(40)
def test_the_repr_of_a_value_in_a_message_is_short(value: object) -> None:
    for _ in range(50):
        value = [value, value]
    assert len(short_repr(value)) < 1000
    assert is_count(value) is False
    assert is_sha256(value) is False


@given(st.text(st.characters()))
@examples(60)
def test_a_message_leaves_the_terminal_alone(text: str) -> None:
    assert all(character == "\n" or character.isprintable() for character in printable(text))
    assert printable("naïve 日本 🙂\nit") == "naïve 日本 🙂\nit"
    assert printable("\x1b]0;\u202e\udc80") == "\\x1b]0;\\u202e\\udc80"


def test_a_folder_with_a_hostile_name_gets_a_message_of_printable_characters(
    tmp_path: Path,
) -> None:
    name = "\x1b[2Jrun\u202e"
    done = subprocess.run(
        [sys.executable, "-m", "sglm.cli.main", "prep", str(tmp_path / name), "--out", "x"],
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert b"\\x1b[2Jrun\\u202e: no such file" in done.stderr
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize("command", ["prep", "train", "eval", "score", "generate", "compare"])
def test_names_that_are_no_text_are_refused_by_every_command(command: str) -> None:
    result = CliRunner().invoke(app, [command, "caf\udce9", "--out", "x"])
    assert result.exit_code == 2
    assert r"'caf\udce9' is not UTF-8" in result.stderr
