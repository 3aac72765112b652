"""A text that is wrapped at a width is known by its full lines, and no other one is."""

import gzip
import random
import subprocess
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.cli.prep import JOIN, _joining_command
from sglm.text.wrapping import wrapped_width
from tests.conftest import make_text
from tests.tiny_models import save_lm


def paragraphs(count: int, words: int) -> list[str]:
    """Of words of two to nine letters."""
    rng = random.Random(0)
    return [
        " ".join("x" * rng.randint(2, 9) for _ in range(rng.randint(2, words)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("width", [50, 70, 100])
def test_wrapped_paragraphs_have_their_width(width: int) -> None:
    lines = [line for text in paragraphs(80, 200) for line in [*textwrap.wrap(text, width), ""]]
    assert wrapped_width(lines) == width
    # A few longer lines change nothing.
    assert wrapped_width([*lines[:500], "http://" + "x" * 300, *lines[500:]]) == width


def test_others_are_not_wrapped() -> None:
    assert wrapped_width(paragraphs(200, 200)) is None  # a paragraph a line
    assert wrapped_width(paragraphs(200, 30)) is None  # a sentence a line
    assert wrapped_width(make_text(500).splitlines()) is None
    assert wrapped_width(f"word{n}" for n in range(500)) is None  # a list
    assert wrapped_width([*textwrap.wrap(" ".join(paragraphs(1, 90)), 70)]) is None  # too short
    assert wrapped_width([]) is None


def test_prep_warns_and_its_cure_works(tmp_path: Path) -> None:
    lines = [line for text in paragraphs(80, 200) for line in [*textwrap.wrap(text, 70), ""]]
    source = tmp_path / "my book.txt"
    source.write_text("\r\n".join(lines) + "\r\n", newline="")
    arguments = ["prep", str(source), "--tokenizer", "byte", "--out", str(tmp_path / "a")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert f"the lines of {source} are wrapped at 70 columns" in result.stderr
    assert f"'{source}' > 'my book-joined.txt'" in result.stderr
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(source.read_bytes()))
    packed = [*arguments[:1], str(tmp_path / "b.txt.gz"), *arguments[2:-1], str(tmp_path / "c")]
    warning = CliRunner().invoke(app, packed).stderr
    cure = "zcat " + warning.partition("zcat ")[2].rpartition(" > ")[0]
    text = "\n".join(lines)
    joined = "\n\n".join(part.replace("\n", " ") for part in text.split("\n\n"))
    ran = subprocess.run(cure, shell=True, capture_output=True, check=True)
    assert ran.stdout.decode().rstrip() == joined.rstrip()
    source.write_text(joined)
    again = CliRunner().invoke(app, [*arguments[:-1], str(tmp_path / "b")])
    assert again.exit_code == 0
    assert "wrapped" not in again.stderr


@pytest.mark.parametrize("kind", ["byte", "word"])
def test_carriage_returns_are_told_with_their_cure(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are no tokens."""
    monkeypatch.chdir(tmp_path)
    text, windows = make_text(300), Path("windows.txt")
    windows.write_text(text, newline="\r\n")
    Path("unix.txt").write_text(text)

    def warnings_of(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*arguments])
        assert result.exit_code == 0, result.stderr
        return result.stderr

    prep = ("prep", "--tokenizer", kind, "--out")
    assert "CR LF" not in warnings_of(*prep, "unix", "unix.txt")
    warned = warnings_of(*prep, "windows", "windows.txt")
    assert ("the lines of windows.txt end in CR LF" in warned) == (kind == "byte")
    if kind == "byte":
        cure = "perl " + warned.partition("perl ")[2].splitlines()[0]
        subprocess.run(cure, shell=True, check=True)
        assert Path("windows-lf.txt").read_bytes() == Path("unix.txt").read_bytes()
    save_lm(kind, Path("lm"))
    assert "CR LF" not in warnings_of("eval", "lm", "--text", "unix.txt")
    warned = warnings_of("eval", "lm", "--text", "windows.txt")
    assert ("windows.txt end in CR LF" in warned) == (kind == "byte")


def test_the_cure_never_overwrites_and_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a third of the paragraphs is indented, or their first lines are."""
    monkeypatch.chdir(tmp_path)
    wrapped: list[str] = []
    for number, text in enumerate(paragraphs(90, 200)):
        indent = "    " * (number % 3 == 1)
        first = indent or "  " * (number % 3 == 2)
        wrapped += textwrap.wrap(text, 70, initial_indent=first, subsequent_indent=indent)
        wrapped.append("")
    source = tmp_path / "book.txt"
    source.write_text("\n".join(wrapped) + "\n")
    (tmp_path / "book-joined.txt").write_text("mine")
    arguments = ["prep", "book.txt", "--tokenizer", "byte", "--out"]
    warning = CliRunner().invoke(app, [*arguments, "a"]).stderr
    cure = "perl " + warning.partition("perl ")[2].splitlines()[0]
    assert cure.endswith(" book.txt > book-joined-2.txt")
    subprocess.run(cure, shell=True, check=True)
    assert (tmp_path / "book-joined.txt").read_text() == "mine"
    joined = (tmp_path / "book-joined-2.txt").read_text()
    assert joined.split() == source.read_text().split()
    lines = [line for line in joined.splitlines() if line]
    assert len(lines) == 90
    result = CliRunner().invoke(app, ["prep", "book-joined-2.txt", *arguments[2:], "b"])
    assert result.exit_code == 0
    assert "wrapped" not in result.stderr


def test_a_deeper_line_begins_another_paragraph() -> None:
    text = "  One\nis here.  \n  Two\nis\nthere.\n    verse,\n    verse\n\n\nThe end"
    ran = subprocess.run(f"{JOIN} -", shell=True, input=text.encode(), capture_output=True)
    assert ran.stdout.decode() == (
        "  One is here.\n  Two is there.\n    verse, verse\n\n\nThe end\n"
    )


def test_a_name_that_cannot_be_pasted_gets_no_command() -> None:
    assert _joining_command("caf\udce9.txt") == ""
    assert _joining_command("-book.txt").endswith(" ./-book.txt > ./-book-joined.txt")


def test_a_line_is_full_where_one_more_character_would_have_been_too_much() -> None:
    """With the space before the next word; one in five lines is as long as the width."""
    for width in (40, 60):
        full = [f"abcd {'x' * (width - 5)}", *[f"abcd {'x' * (width - 9)}"] * 4] * 20
        assert wrapped_width(full) == width
        loose = [line if len(line) == width else line[:-1] for line in full]
        assert wrapped_width(loose) is None
