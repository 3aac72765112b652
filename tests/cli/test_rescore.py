"""`sglm rescore` without references; word errors: `tests/extras/test_rescore.py`."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sglm
from sglm import mix
from sglm.cli.main import app
from sglm.model.folder import save_model
from sglm.text.tokenizer import IdsTokenizer
from tests.tiny_models import make_network, save_lm
from tests.toy_ngrams import write_toy_arpa

LISTS = [
    [("the cat sat", -1.0), ("the mat sat", -1.1), ("the cat sat", -3.0)],
    [("a dog saw the cat", 0.0), ("a dog the cat", 0.2), ("dog the", -0.2)],
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "beams.tsv").write_text(
        "".join(f"{text}\t{score}\n" for candidates in LISTS for text, score in candidates)
    )
    return save_lm("word", tmp_path / "run")


def rescore(run: Path, *arguments: object, beam_size: int = 3) -> Result:
    beams = run.parent / "beams.tsv"
    command = ["rescore", str(run), str(beams), "--beam-size", str(beam_size)]
    return CliRunner().invoke(app, [*command, *map(str, arguments)])


@pytest.mark.parametrize("kind", ["word", "sentencepiece"])
@pytest.mark.parametrize("eos", [None, True, False])
def test_numbers_are_those_of_score(run: Path, kind: str, eos: bool | None) -> None:
    run = save_lm(kind, run.parent / kind)
    options = () if eos is None else ("--eos" if eos else "--no-eos",)
    result = rescore(run, "--alpha", 0.5, "--beta", 0.1, *options, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    lm = sglm.load(run)
    ends = (kind == "word") if eos is None else eos
    for candidates, best in zip(LISTS, found.pop("best"), strict=True):
        logprobs = [lm.score(text, eos=ends).logprob for text, _ in candidates]
        combined = [
            score + 0.5 * logprob + 0.1 * len(text)
            for (text, score), logprob in zip(candidates, logprobs, strict=True)
        ]
        place = combined.index(max(combined))
        assert (best["candidate"], best["text"]) == (place, candidates[place][0])
        assert best["score"] == candidates[place][1]
        assert best["logprob"] == pytest.approx(logprobs[place], rel=1e-6)  # read in a batch
        assert best["combined"] == pytest.approx(combined[place], rel=1e-6)
    assert found == {
        "model": str(run),
        "lists": 2,
        "beam_size": 3,
        "alpha": 0.5,
        "beta": 0.1,
        "tuned": False,
        "wer": None,
    }


def test_one_line_a_list(run: Path) -> None:
    assert rescore(run, "--alpha", 0).stdout == "the cat sat\na dog the cat\n"
    # The longest wins where length alone counts.
    assert rescore(run, "--alpha", 0, "--beta", 9).stdout == "the cat sat\na dog saw the cat\n"
    piped = CliRunner().invoke(
        app,
        ["rescore", str(run), "-", "--beam-size", "1", "--alpha", "0"],
        input=(run.parent / "beams.tsv").read_text(),
    )
    assert piped.stdout.splitlines() == [text for each in LISTS for text, _ in each]


def test_the_mixture_is_what_scores(run: Path) -> None:
    arpa = write_toy_arpa(run.parent / "toy.arpa")
    result = rescore(run, "--mix", arpa, "--weight", 0.4, "--json")
    mixed = mix.with_ngram(sglm.load(run), arpa, weight=0.4)
    for best in json.loads(result.stdout)["best"]:
        expected = mixed.score(best["text"], eos=True).logprob
        assert best["logprob"] == pytest.approx(expected, rel=1e-6)
    # Alone, an n-gram model without <unk> gives some texts no probability at all.
    lines = [line for line in arpa.read_text().splitlines() if "<unk>" not in line]
    text = "\n".join(lines)
    for order in (1, 2, 3):
        section = text.split(f"\\{order}-grams:\n")[1].split("\n\n")[0]
        head = next(line for line in lines if line.startswith(f"ngram {order}="))
        text = text.replace(head, f"ngram {order}={len(section.splitlines())}")
    arpa.write_text(text)
    (run.parent / "beams.tsv").write_text("the zyx\t0\n")
    assert rescore(run, "--mix", arpa, "--weight", 0.9, beam_size=1).exit_code == 0
    alone = rescore(run, "--mix", arpa, "--weight", 1, beam_size=1)
    assert alone.exit_code == 2
    assert "'the zyx' has probability 0" in alone.stderr


def test_unknown_words_are_told(run: Path) -> None:
    (run.parent / "beams.tsv").write_text("the zyx\t0\nthe cat\t0\n")
    result = rescore(run, beam_size=2)
    assert "warning: 1 candidates hold words that the vocabulary lacks" in result.stderr


def test_a_candidate_that_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    tokenizer = IdsTokenizer(20, eos_id=0)
    save_model(make_network(20), tmp_path / "ids", tokenizer.fingerprint)
    tokenizer.save(tmp_path / "ids")
    (tmp_path / "beams.tsv").write_text("1 2\t-1\n1 20\t-2\n")
    result = CliRunner().invoke(
        app, ["rescore", str(tmp_path / "ids"), str(tmp_path / "beams.tsv"), "--beam-size", "2"]
    )
    assert result.exit_code == 2
    assert result.stderr.startswith("sglm: '1 20': the id 20 is not in the vocabulary")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune"], "by --references FILE"),
        (["--tune", "--references", "x", "--alpha", 1, "--beta", 1], "the one that is left out"),
        (["--weight", 0.5], "--weight belongs to --mix"),
        (["--mix", "x.arpa"], "--mix needs --weight"),
        # Before anything is read.
        (["--mix", "x.arpa", "--references", "nope.txt"], "--mix needs --weight"),
        (["--alpha", "much"], "--alpha: 'much' is not a number"),
        (["--beta", "nan"], "--beta: 'nan' is not a finite number"),
        (["--beam-size", 0], "a list of 0 candidates; give 1 or more"),
        (["--beam-size", 4], "6 lines are not a multiple of the 4 candidates"),
        (["--references", "nope.txt"], "nope.txt: no such file"),
    ],
)
def test_wrong_use_is_named(run: Path, arguments: list[object], message: str) -> None:
    result = rescore(run, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_without_jiwer_its_installation_is_named(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jiwer", None)
    references = run.parent / "references.txt"
    references.write_text("the cat sat\na dog saw the cat\n")
    result = rescore(run, "--references", references)
    assert result.exit_code == 2
    assert "jiwer: pip install 'sglm[kenlm]'" in result.stderr
