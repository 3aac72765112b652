"""`sglm pairs`: minimal pairs, and files that hold none."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from sglm.model.folder import save_model
from tests.tiny_models import make_network, make_tokenizer, save_lm

RECORDS = [
    {"sentence_good": good, "sentence_bad": bad, "UID": uid, "field": field}
    for good, bad, uid, field in (
        ("the cat sat", "the sat cat", "order", "syntax"),
        ("a dog saw the cat", "dog a saw cat the", "order", "syntax"),
        ("the mat", "the mat", "same", "syntax"),
        ("a dog ran", "a dog the", "syntax", "other"),
    )
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm("sentencepiece", tmp_path_factory.mktemp("model") / "run")


def write(path: Path, records: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pairs(run: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["pairs", str(run), *map(str, arguments)])


def test_the_more_probable_sentence_wins_and_a_tie_counts_half(run: Path, tmp_path: Path) -> None:
    write(tmp_path / "pairs" / "a.jsonl", RECORDS[:2])
    write(tmp_path / "pairs" / "deeper" / "b.jsonl", RECORDS[2:])
    lm = sglm.load(run)
    wins = [
        lm.score(str(r["sentence_good"])).logprob > lm.score(str(r["sentence_bad"])).logprob
        for r in RECORDS
    ]
    result = pairs(run, tmp_path / "pairs", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == {
        "groups": {
            "order": {"n": 2, "accuracy": sum(wins[:2]) / 2, "ties": 0},
            "same": {"n": 1, "accuracy": 0.5, "ties": 1},
            "syntax": {"n": 1, "accuracy": float(wins[3]), "ties": 0},
            "other": {"n": 1, "accuracy": float(wins[3]), "ties": 0},
            # Another field's value of the same name.
            "field=syntax": {"n": 3, "accuracy": (sum(wins[:2]) + 0.5) / 3, "ties": 1},
        },
        "n": 4,
        "accuracy": (sum(wins) + 0.5) / 4,
        "ties": 1,
    }
    table = pairs(run, tmp_path / "pairs").stdout.splitlines()
    assert table[0].split() == ["group", "pairs", "accuracy", "ties"]
    assert [line.split()[0] for line in table[1:]] == [*found["groups"], "all"]


def test_other_fields(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"yes": "the cat", "no": "cat the", "kind": 3}])
    result = pairs(run, file, "--good", "yes", "--bad", "no", "--group", "kind,kind", "--json")
    assert json.loads(result.stdout)["groups"].keys() == {"3"}
    without_groups = pairs(run, file, "--good", "yes", "--bad", "no", "--json")
    assert json.loads(without_groups.stdout)["groups"] == {}


def test_unknown_words_are_told(tmp_path: Path) -> None:
    run = save_lm("word", tmp_path / "run")
    file = write(tmp_path / "x.jsonl", [{"sentence_good": "the zyx", "sentence_bad": "the qqq"}])
    result = pairs(run, file, "--json")
    assert json.loads(result.stdout)["ties"] == 1
    assert "warning: 1 of 1 pairs hold words that the vocabulary lacks" in result.stderr


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"sentence_good": "a"}, [], "line 1: no field 'sentence_bad'"),
        (RECORDS[0], ["--good", "sentence_god"], "did you mean 'sentence_good'? (--good names it)"),
        (RECORDS[0], ["--group", "UDI"], "did you mean 'UID'? (--group names it)"),
        (
            {"sentence_good": 3, "sentence_bad": "a"},
            [],
            "line 1: the field 'sentence_good' is not text but int",
        ),
        ({"sentence_good": " ", "sentence_bad": "a"}, [], "the field 'sentence_good' is empty"),
        ({"sentence_good": "\ud800", "sentence_bad": "a"}, [], "line 1: '\\ud800' is half a"),
        ([1], [], "line 1: not an object"),
    ],
)
def test_what_is_wrong_is_named(
    run: Path, tmp_path: Path, record: dict[str, object], options: list[str], message: str
) -> None:
    result = pairs(run, write(tmp_path / "x.jsonl", [record]), *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_nothing_to_compare(run: Path, tmp_path: Path) -> None:
    for file, message in (
        (write(tmp_path / "empty.jsonl", []), "no pairs in there"),
        (tmp_path / "nope", "no such file or folder"),
        (run, "no .jsonl file in this folder"),
    ):
        result = pairs(run, file)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_row_for_each_pair(run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [*RECORDS, {**RECORDS[0], "sentence_bad": 'a\t"b"'}])
    result = pairs(run, file, "--tsv")
    assert result.exit_code == 0, result.output
    found = list(csv.DictReader(io.StringIO(result.stdout), delimiter="\t"))
    assert [row["pair"] for row in found] == [f"{file}, line {n + 1}" for n in range(5)]
    lm = sglm.load(run)
    for row, record in zip(found, RECORDS, strict=False):
        for name in ("good", "bad"):
            text = str(record[f"sentence_{name}"])
            assert row[f"sentence_{name}"] == text
            assert float(row[f"logprob_{name}"]) == pytest.approx(lm.score(text).logprob, rel=1e-6)
    assert found[4]["sentence_bad"] == r'a\t"b"'
    assert pairs(run, file, "--tsv", "--json").exit_code == 2


def test_equal_tokens_tie_in_whatever_company_they_are_read(tmp_path: Path) -> None:
    """Batches differ, and with them the order of sums."""
    tokenizer = make_tokenizer("word")
    network = make_network(tokenizer.vocab_size)
    save_model(network, tmp_path / "run", tokenizer.fingerprint)
    tokenizer.save(tmp_path / "run")
    words = ["the", "cat", "sat", "dog"]
    texts = [" ".join(words[(n + m) % 4] for m in range(n % 37)) for n in range(700)]
    records = [{"sentence_good": f"{t} zyx", "sentence_bad": f"{t} qqq"} for t in texts]
    result = pairs(tmp_path / "run", write(tmp_path / "x.jsonl", records), "--json")
    assert json.loads(result.stdout)["ties"] == 700


def test_from_stdin(run: Path) -> None:
    arguments = ["pairs", str(run), "-", "--json"]
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    result = CliRunner().invoke(app, arguments, input=lines.encode())
    assert json.loads(result.stdout)["n"] == len(RECORDS)
