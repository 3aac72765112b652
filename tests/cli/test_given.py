"""The commands with a vocabulary that was given: ids through all of them, and a SentencePiece
model."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sglm import kenlm
from sglm.cli.main import app
from sglm.loading import load
from sglm.model.folder import save_model
from sglm.text.store import TokenStore
from tests.tiny_models import LINES, make_network, plain_nlls, save_lm, spm_model

IDS = "5 7 9\n1 2\n\n8 8 8 8 1 2\n"


def run(*arguments: str, given: str = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=given)


def checked(*arguments: str, given: str = "") -> str:
    result = run(*arguments, given=given)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of ids, and a model of them."""
    folder = tmp_path_factory.mktemp("ids")
    (folder / "ids.txt").write_text(IDS * 100)
    (folder / "few.txt").write_text(IDS)
    checked(
        *("prep", f"{folder}/ids.txt", "--tokenizer", "ids", "--vocab-size", "10"),
        *("--eos-id", "0", "--test", f"{folder}/few.txt", "--out", f"{folder}/store"),
    )
    tokenizer = TokenStore.open(folder / "store").tokenizer()
    save_model(make_network(tokenizer.vocab_size), folder / "model", tokenizer.fingerprint)
    tokenizer.save(folder / "model")
    return folder


def test_a_store_of_ids_counts_neither_words_nor_bytes(folder: Path) -> None:
    store = TokenStore.open(folder / "store")
    assert store.ids("test").tolist() == [5, 7, 9, 0, 1, 2, 0, 0, 8, 8, 8, 8, 1, 2, 0]
    assert store.counts("test") == (15, None, None, 0)
    meta = json.loads((folder / "store/meta.json").read_text())
    assert (meta["splits"]["test"]["words"], meta["splits"]["test"]["bytes"]) == (None, None)
    assert meta["tokenizer"]["vocab_size"] == 10
    again = ["prep", f"{folder}/ids.txt", "--tokenizer-of", str(folder)]
    shown = checked(*again, "--test", f"{folder}/few.txt", "--out", f"{folder}/again")
    assert "each line ends in the id 0\n" in shown
    assert TokenStore.open(folder / "again").fingerprint == store.fingerprint
    assert ["test", "15", "-", "-", "0"] in [line.split() for line in shown.splitlines()]


def test_only_a_store_of_ids_may_lack_words(folder: Path) -> None:
    path = folder / "again-meta.json"
    meta = json.loads((folder / "store/meta.json").read_text())
    meta["tokenizer"]["kind"] = "byte"
    (folder / "spoilt").mkdir()
    path = folder / "spoilt" / "meta.json"
    path.write_text(json.dumps(meta))
    result = run("eval", f"{folder}/model", "--data", f"{folder}/spoilt")
    assert result.exit_code == 2
    assert "meta.json is damaged (split" in result.stderr


@pytest.mark.parametrize("how", [("--data", "store"), ("--text", "few.txt")])
def test_eval_of_ids(folder: Path, how: tuple[str, str]) -> None:
    arguments = ("eval", f"{folder}/model", how[0], f"{folder}/{how[1]}")
    found = json.loads(checked(*arguments, "--json"))
    ids = [0, 5, 7, 9, 0, 1, 2, 0, 0, 8, 8, 8, 8, 1, 2, 0]
    expected = sum(plain_nlls(load(folder / "model", "cpu").model, ids))
    assert found["nll_nats"] == pytest.approx(expected, rel=1e-5)
    assert found["token_ppl"] == pytest.approx(math.exp(expected / 15), rel=1e-5)
    assert found["tokens"] == 15
    for name in ("words", "bytes", "word_ppl", "bits_per_byte"):
        assert found[name] is None
    table = checked(*arguments)
    assert "perplexity per token" in table
    assert "word" not in table
    assert "byte" not in table
    lines = json.loads(checked(*arguments, "--context", "reset", "--json"))
    assert lines["tokens"] == 15
    assert lines["nll_nats"] != pytest.approx(found["nll_nats"])


def test_score_surprisal_and_generate_of_ids(folder: Path) -> None:
    model = f"{folder}/model"
    lines = checked("score", model, "--json", "--per-token", given="5 7 9\n\n1  2\n").splitlines()
    first, empty, last = map(json.loads, lines)
    expected = [-nll for nll in plain_nlls(load(model, "cpu").model, [0, 5, 7, 9])]
    assert first["token_logprobs"] == pytest.approx(expected, rel=1e-4)
    assert first["tokens"] == ["5", "7", "9"]
    assert (empty["n_tokens"], last["n_tokens"]) == (0, 2)
    for name in ("n_words", "n_bytes", "bits_per_byte"):
        assert first[name] is empty[name] is None
    rows = json.loads(checked("surprisal", model, "--json", given="5 7\n"))["rows"]
    assert [row["word"] for row in rows] == ["5", "7"]
    text = checked("generate", model, "--prompt", "1 2 3", "--tokens", "20", "--seed", "1")
    assert text.startswith("1 2 3")
    assert {int(word) for word in text.split()} <= set(range(1, 10))
    assert len(text.split()) + text[:-1].count("\n") == 23, "an end of line is a token"
    score = load(model, "cpu").score("5 7 9")
    assert score.logprob == pytest.approx(sum(expected), rel=1e-4)
    assert (score.n_words, score.n_bytes, score.bits_per_byte) == (None, None, None)


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        (("score",), "1 2\n" * 1500 + "1 x\n", "stdin, line 1501: 'x' is not an integer"),
        (("surprisal",), "1 2\n" * 3 + "1 10\n", "stdin, line 4: the id 10 is not in the vocab"),
        (("surprisal", "--context", "previous"), "1\n-2\n", "stdin, line 2: the id -2 is neg"),
        (("eval", "--text", "-"), "1 2\n" * 3 + "1 x\n", "stdin, line 4: 'x' is not an integer"),
        (("generate", "--prompt", "1 x"), "", "'x' is not an integer"),
    ],
)
def test_the_line_that_holds_no_ids_is_named(
    folder: Path, command: tuple[str, ...], given: str, message: str
) -> None:
    result = run(command[0], f"{folder}/model", *command[1:], given=given)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"sglm: {message}")
    assert result.stderr.count("\n") == 1


def test_kenlms_methods_for_ids(folder: Path) -> None:
    model = kenlm.Model(str(folder / "model"))
    nats = load(folder / "model", "cpu").score("5 7 9").logprob
    assert model.score("5 7 9", eos=False) == pytest.approx(nats / math.log(10), rel=1e-5)
    assert "5" in model
    assert "x" not in model
    assert "77" not in model


def test_minimal_pairs_of_ids(folder: Path) -> None:
    pairs = folder / "pairs.jsonl"
    pairs.write_text('{"sentence_good": "1 2 3", "sentence_bad": "3 2 1"}\n')
    assert json.loads(checked("pairs", f"{folder}/model", str(pairs), "--json"))["n"] == 1
    pairs.write_text('{"sentence_good": "1 2 3", "sentence_bad": "the"}\n')
    result = run("pairs", f"{folder}/model", str(pairs))
    assert result.exit_code == 2
    assert "pairs.jsonl, line 1: 'the' is not an integer" in result.stderr


def test_a_sentencepiece_model_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(("\n".join(LINES[:-1]) + "\n") * 20)
    (tmp_path / "given.model").write_bytes(spm_model(model_type="unigram", vocab_size=60))
    made = ["prep", f"{tmp_path}/text.txt", "--tokenizer", f"spm:{tmp_path}/given.model"]
    shown = checked(*made, "--out", f"{tmp_path}/store")
    assert "each line ends in the id 2, </s>\n" in shown
    shown = checked(*made, "--eos-id", "1", "--out", f"{tmp_path}/other")
    assert "each line ends in the id 1, <s>\n" in shown
    model = save_lm("spm", tmp_path / "model")
    found = json.loads(checked("eval", str(model), "--data", f"{tmp_path}/store", "--json"))
    assert found["words"] > 0
    assert found["bits_per_byte"] > 0
    hidden = json.loads(checked("score", str(model), "--json", given="the Ω\n"))
    assert hidden["bits_per_byte"] is None, "an unknown token hides bytes"
    result = run("eval", str(model), "--data", f"{tmp_path}/other")
    assert result.exit_code == 2
    assert "was made by another tokenizer (spm" in result.stderr


def test_a_tokenizer_that_does_not_mark_words_has_no_correction(tmp_path: Path) -> None:
    from sglm.text.spm_tokenizer import SpmTokenizer

    suffix = SpmTokenizer(
        spm_model(model_type="bpe", vocab_size=90, treat_whitespace_as_suffix=True)
    )
    save_model(make_network(suffix.vocab_size), tmp_path, suffix.fingerprint)
    suffix.save(tmp_path)
    result = run("surprisal", str(tmp_path), "--correction", "bow", given="the cat\n")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--correction bow needs tokens that mark where words begin" in result.stderr
    assert checked("surprisal", str(tmp_path), given="the cat\n").count("\n") == 3
