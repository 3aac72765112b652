"""`sglm surprisal`: the columns that outsiders rely on, and what is in them."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from tests.tiny_models import LINES, save_lm

COLUMNS = [
    *("text_id", "word_id", "word", "start", "end"),
    *("surprisal", "n_tokens", "unk", "rank", "entropy"),
]
# Quotes, a tab, white space that is no space, an empty line.
TEXT = ['the "cat" sat\ton  the mat', "", "a dog\u3000saw", '"', *LINES]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm("sentencepiece", tmp_path_factory.mktemp("model") / "run")


def surprisal(run: Path, *options: str, text: str = "\n".join(TEXT) + "\n") -> Result:
    arguments = ["surprisal", str(run), *options]
    return CliRunner().invoke(app, arguments, input=text.encode())


def rows(result: Result) -> list[dict[str, str]]:
    assert result.exit_code == 0, result.output
    return list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t"))


def test_a_table_for_other_programs(run: Path) -> None:
    found = rows(surprisal(run, "--tsv"))
    assert list(found[0]) == COLUMNS
    lm = sglm.load(run)
    scores = lm.score(TEXT, distribution=True)
    expected = [(i, j, w) for i, s in enumerate(scores) for j, w in enumerate(s.words())]
    assert len(found) == len(expected)
    for row, (text_id, word_id, word) in zip(found, expected, strict=True):
        assert (int(row["text_id"]), int(row["word_id"])) == (text_id, word_id)
        assert row["word"] == word.word == TEXT[text_id][int(row["start"]) : int(row["end"])]
        # Printed with six digits.
        assert float(row["surprisal"]) == pytest.approx(word.surprisal, rel=1e-5)
        assert float(row["entropy"]) == pytest.approx(word.entropy, rel=1e-5)
        assert row["rank"] == ("" if word.rank is None else str(word.rank))
        assert (int(row["n_tokens"]), row["unk"]) == (word.n_tokens, "0")
    assert {row["text_id"] for row in found} == {str(i) for i, t in enumerate(TEXT) if t.split()}


def test_one_json_object_says_the_same(run: Path) -> None:
    found = json.loads(surprisal(run, "--json").stdout)
    assert (found["unit"], found["base"]) == ("word", "2")
    read = found["rows"]
    assert list(read[0]) == COLUMNS
    for row, values in zip(rows(surprisal(run, "--tsv")), read, strict=True):
        assert row["word"] == values["word"]
        assert float(row["surprisal"]) == pytest.approx(values["surprisal"], rel=1e-5)
        assert values["rank"] is None or values["rank"] >= 1
    assert json.loads(surprisal(run, "--json", text="\n").stdout)["rows"] == []
    # Read in several pieces: each line is scored by itself.
    piecewise = json.loads(surprisal(run, "--json", "--context", "previous").stdout)
    assert [row["word"] for row in piecewise["rows"]] == [row["word"] for row in read]


def test_bases_units_and_corrections(run: Path) -> None:
    bits, nats = (rows(surprisal(run, "--tsv", "--base", base)) for base in ("2", "e"))
    for one, other in zip(bits, nats, strict=True):
        assert float(one["surprisal"]) * math.log(2) == pytest.approx(
            float(other["surprisal"]), rel=1e-4
        )
    tokens = rows(surprisal(run, "--tsv", "--unit", "token"))
    scores = sglm.load(run).score(TEXT)
    assert [row["word"] for row in tokens] == [name for score in scores for name in score.tokens]
    assert sum(float(row["surprisal"]) for row in tokens) == pytest.approx(
        -sum(score.logprob for score in scores) / math.log(2), rel=1e-4
    )
    corrected = rows(surprisal(run, "--tsv", "--correction", "bow"))
    assert [row["surprisal"] for row in corrected] != [row["surprisal"] for row in bits]
    assert surprisal(run, "--unit", "token", "--correction", "bow").exit_code == 2


def test_contexts(run: Path) -> None:
    lm = sglm.load(run)
    after = rows(surprisal(run, "--tsv", "--context", "a dog saw", text="the cat\n"))
    whole = lm.score("a dog saw the cat").words()[3:]
    assert [float(row["surprisal"]) for row in after] == pytest.approx(
        [word.surprisal for word in whole], rel=1e-4
    )
    running = rows(surprisal(run, "--tsv", "--context", "previous"))
    alone = rows(surprisal(run, "--tsv", "--context", ""))
    lines = {row["text_id"] for row in alone}
    assert [row["word"] for row in running] == [row["word"] for row in alone]
    for line in lines:
        one, other = (
            [row["surprisal"] for row in table if row["text_id"] == line]
            for table in (running, alone)
        )
        assert (one == other) == (line == "0")


def test_a_table_for_people_fits_a_terminal(run: Path) -> None:
    result = surprisal(run, text="the cat\n")
    heading, *lines = result.stdout.splitlines()
    assert " ".join(heading.split()) == "text word surprisal entropy rank tokens word"
    assert [line.split()[-1] for line in lines] == ["the", "cat"]
    assert max(map(len, [heading, *lines])) < 70


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-file"], "echo no-such-file | sglm surprisal"),
        (["--base", "3"], "--base: unknown '3'"),
        (["--tsv", "--json"], "not both"),
    ],
)
def test_wrong_use_is_named(run: Path, options: list[str], message: str) -> None:
    result = surprisal(run, *options)
    assert result.exit_code == 2
    assert message in result.output


def test_a_word_is_what_stands_in_the_text(run: Path) -> None:
    """Escape sequences too, which click takes out of a pipe."""
    (row,) = rows(surprisal(run, "--tsv", text="red\x1b[31mword\n"))
    assert row["word"] == "red\x1b[31mword"
    assert int(row["end"]) == len(row["word"])


@pytest.mark.parametrize("name", ["stimuli.csv", "records.jsonl", "table.parquet"])
@pytest.mark.parametrize("command", ["surprisal", "score"])
def test_a_table_is_not_read_as_lines(run: Path, tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / name).write_text("id,text\n1,the cat\n")
    result = CliRunner().invoke(app, [command, str(run), str(tmp_path / name)])
    assert result.exit_code == 2
    assert "records or a table, not lines of text" in result.stderr
    assert ("--out DIR" in result.stderr) == (command == "score")


def test_words_spelled_in_bytes_are_told(run: Path) -> None:
    result = surprisal(run, "--tsv", text="the cat🦊 sat 🦊🦊 and\n🦊\n")
    assert "note: 3 words have characters that are spelled in bytes" in result.stderr
    assert "note" not in surprisal(run, "--tsv", text="the cat sat\n").stderr
    by_token = surprisal(run, "--tsv", "--unit", "token", text="the cat🦊\n")
    assert "note: 1 words" in by_token.stderr
