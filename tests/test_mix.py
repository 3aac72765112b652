"""A model mixed with an n-gram model, in Python and by `sglm eval --mix`."""

import json
import math
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sglm
from scripts.experiments.kneser_ney import write_ngram_model
from sglm import mix
from sglm.cli.main import app
from sglm.errors import InputError
from sglm.model.folder import save_model
from sglm.scoring.predictor import NetworkPredictor
from sglm.text.overlap import LineHasher
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.text.tokenizer import WordTokenizer
from tests.tiny_models import LINES, make_network, make_store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    (folder / "held.txt").write_text("\n".join(LINES), encoding="utf-8")
    store = make_store(folder, "word", folder / "held.txt")
    tokenizer = store.tokenizer()
    save_model(make_network(tokenizer.vocab_size), folder / "run", tokenizer.fingerprint)
    tokenizer.save(folder / "run")
    # Of single words: anything longer would be far better than a network that has learned nothing.
    write_ngram_model(store, folder / "toy.arpa", 1)
    return folder


@pytest.fixture
def lm(place: Path) -> sglm.LanguageModel:
    return sglm.load(place / "run")


@pytest.fixture
def store(place: Path) -> TokenStore:
    return TokenStore.open(place / "store")


def evaluate(place: Path, *arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", str(place / "run"), *map(str, arguments)])


def test_the_two_ends_are_the_two_models(place: Path, lm: sglm.LanguageModel) -> None:
    texts = ["the cat sat", "a dog saw the mat"]
    lstm, none = lm.score(texts), mix.with_ngram(lm, place / "toy.arpa", weight=0).score(texts)
    assert [s.logprob for s in none] == pytest.approx([s.logprob for s in lstm], rel=1e-12)
    alone = mix.with_ngram(lm, place / "toy.arpa", weight=1).score(texts)
    half = mix.with_ngram(lm, str(place / "toy.arpa"), weight=0.5).score(texts)
    for mixed, one, other in zip(half, lstm, alone, strict=True):
        for p, q, r in zip(
            mixed.token_logprobs, one.token_logprobs, other.token_logprobs, strict=True
        ):
            assert math.exp(p) == pytest.approx((math.exp(q) + math.exp(r)) / 2, rel=1e-12)


@pytest.mark.parametrize("context", ["carried", "reset"])
def test_the_weight_is_the_best_of_the_first_half(
    place: Path, lm: sglm.LanguageModel, store: TokenStore, context: str
) -> None:
    ngram = mix.read_ngram(lm, place / "toy.arpa")
    weight = mix.tune_weight(lm, ngram, store, context=context)
    text = store.tokenizer().decode(store.ids("valid").tolist())
    lines = text.splitlines(keepends=True)
    counts = [len(line.split()) + 1 for line in lines]
    middle = next(n for n in range(len(lines)) if 2 * sum(counts[:n]) >= sum(counts))

    def nats(weight: float, part: list[str]) -> float:
        mixed = mix.with_ngram(lm, ngram, weight=weight)
        return mixed.perplexity(part, context=context).nll_nats

    assert 0.01 < weight < 0.99
    for other in (weight - 0.01, weight + 0.01):
        assert nats(weight, lines[:middle]) < nats(other, lines[:middle])
    mixed = mix.with_ngram(lm, ngram, weight=weight)
    second = mixed.evaluate(store, "valid", context, half="second")
    whole = mixed.perplexity(lines[middle:], context=context)
    assert second.nll_nats == pytest.approx(whole.nll_nats, rel=1e-6)  # float32
    assert (second.tokens, second.words) == (whole.tokens, whole.words)


def test_eval_mixes_and_tunes(place: Path, lm: sglm.LanguageModel, store: TokenStore) -> None:
    data, arpa = ("--data", place / "store"), ("--mix", place / "toy.arpa")
    result = evaluate(place, *data, "--split", "test", *arpa, "--weight", 0.25, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    mixed = mix.with_ngram(lm, place / "toy.arpa", weight=0.25)
    assert found["nll_nats"] == pytest.approx(mixed.evaluate(store, "test").nll_nats, rel=1e-12)
    assert found["mix"] == {"model": str(arpa[1]), "weight": 0.25, "tuned": False}
    plain = json.loads(evaluate(place, *data, "--split", "test", "--json").stdout)
    assert "mix" not in plain
    # Tuned: the test split is evaluated whole, of the validation split the half that is left.
    weight = mix.tune_weight(lm, mix.read_ngram(lm, arpa[1]), store)
    for split, tokens in (
        ("test", store.counts("test").tokens),
        ("valid", mixed.evaluate(store, "valid", half="second").tokens),
    ):
        result = evaluate(place, *data, "--split", split, *arpa, "--weight", "tune", "--json")
        found = json.loads(result.stdout)
        assert found["mix"] == {"model": str(arpa[1]), "weight": weight, "tuned": True}
        assert found["tokens"] == tokens
    # A text is mixed with the weight that is the best on the store's half.
    text = ("--text", place / "held.txt", *data, *arpa, "--weight", "tune", "--json")
    assert json.loads(evaluate(place, *text).stdout)["mix"]["weight"] == weight
    # The table gives <unk> as the reason only where there are some.
    shown = evaluate(place, *data, "--split", "valid", *arpa, "--weight", "tune").stdout
    unknown = mixed.evaluate(store, "valid", half="second").unknown
    (bits,) = (line for line in shown.splitlines() if "bits per byte" in line)
    assert ("<unk> hides bytes" in bits) == (unknown > 0), unknown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mix", "toy.arpa"], "--mix needs --weight"),
        (["--weight", "0.5"], "--weight belongs to --mix"),
        (["--mix", "toy.arpa", "--weight", "half"], "'half' is neither a number nor tune"),
        (["--mix", "toy.arpa", "--weight", "1.5"], "weight must be from 0 to 1, but is 1.5"),
        (["--mix", "toy.arpa", "--weight", "nan"], "weight must be from 0 to 1, but is nan"),
        (["--mix", "held.txt", "--weight", "0.5"], "held.txt: not an ARPA file"),
        (["--mix", "nope.arpa", "--weight", "0.5"], "nope.arpa: no such file"),
    ],
)
def test_what_is_wrong_is_named(
    place: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    result = evaluate(place, "--data", "store", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_a_store_of_another_tokenizer(place: Path, lm: sglm.LanguageModel, tmp_path: Path) -> None:
    other = make_store(tmp_path, "byte", place / "held.txt")
    with pytest.raises(InputError, match=r"another tokenizer .* use the store it was trained on"):
        mix.tune_weight(lm, mix.read_ngram(lm, place / "toy.arpa"), other)


def test_a_reader_that_adapts_is_not_mixed(place: Path) -> None:
    reader = sglm.load(place / "run").adapting("cache")
    with pytest.raises(InputError, match="cannot be mixed"):
        mix.with_ngram(reader, place / "toy.arpa", weight=0.3)


def test_what_was_read_for_another_vocabulary_is_refused(
    place: Path, lm: sglm.LanguageModel, tmp_path: Path
) -> None:
    """Of as many words, so that only the words tell."""
    tokenizer = WordTokenizer([f"w{n}" for n in range(lm.tokenizer.vocab_size - 2)])
    other = sglm.LanguageModel(lm.predictor, tokenizer=tokenizer)
    ngram = mix.read_ngram(lm, place / "toy.arpa")
    with pytest.raises(InputError, match="another vocabulary"):
        mix.with_ngram(other, ngram, weight=0.5)
    with pytest.raises(InputError, match="another vocabulary"):
        mix.tune_weight(other, ngram, place / "store")


def test_tags_among_the_words_are_refused(tmp_path: Path) -> None:
    """They would be predicted as words and as ends: no distribution."""
    text = tmp_path / "tagged.txt"
    text.write_text("<s> the cat sat </s>\n" * 40)
    store = prepare([str(text)], tmp_path / "store", StoreSettings(tokenizer="word"))
    with pytest.raises(InputError, match=r"text contains </s> and <s> as words.* take them out"):
        write_ngram_model(store, tmp_path / "tagged.arpa", 1)
    tokenizer = store.tokenizer()
    network = make_network(tokenizer.vocab_size)
    tagged = sglm.LanguageModel(NetworkPredictor(network), tokenizer=tokenizer)
    (tmp_path / "plain.arpa").write_text(
        "\\data\\\nngram 1=5\n\n\\1-grams:\n"
        + "".join(f"-0.7\t{word}\n" for word in ("<unk>", "<s>", "</s>", "the", "cat"))
        + "\n\\end\\\n"
    )
    with pytest.raises(InputError, match=r"the text contains </s> and <s> as words"):
        mix.read_ngram(tagged, tmp_path / "plain.arpa")


def test_tuning_takes_paths_and_refuses_what_mixing_refuses(
    place: Path, lm: sglm.LanguageModel, store: TokenStore
) -> None:
    ngram = mix.read_ngram(lm, place / "toy.arpa")
    expected = mix.tune_weight(lm, ngram, store)
    assert mix.tune_weight(lm, place / "toy.arpa", str(place / "store")) == expected
    with pytest.raises(InputError, match="context"):
        mix.tune_weight(lm, ngram, store, context="Carried")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be mixed"):
        mix.tune_weight(lm.adapting("cache"), ngram, store)


def test_a_split_too_short_to_tune_on_is_named(place: Path, tmp_path: Path) -> None:
    """Half of one token is none."""
    (tmp_path / "one.txt").write_text("\n")
    train = tmp_path / "train.txt"
    train.write_text("\n".join(LINES) + "\n")
    settings = StoreSettings(tokenizer_of=place / "run", valid=str(tmp_path / "one.txt"))
    prepare([str(train)], tmp_path / "store", settings)
    arpa = ("--mix", place / "toy.arpa", "--weight", "tune")
    result = evaluate(place, "--data", tmp_path / "store", *arpa)
    assert result.exit_code == 2
    assert "no token to tune it on" in result.stderr


def test_what_has_no_probability_is_said(place: Path, tmp_path: Path) -> None:
    """An n-gram model without <unk>, alone."""
    lines = (place / "toy.arpa").read_text().splitlines(keepends=True)
    known = [line for line in lines if "<unk>" not in line]
    assert len(known) == len(lines) - 1
    count = next(n for n, line in enumerate(known) if line.startswith("ngram 1="))
    known[count] = f"ngram 1={int(known[count].split('=')[1]) - 1}\n"
    (tmp_path / "closed.arpa").write_text("".join(known))
    arpa = ("--mix", tmp_path / "closed.arpa", "--weight", "1", "--json")
    result = evaluate(place, "--text", place / "held.txt", *arpa)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["token_ppl"] is None
    assert "a token has probability 0" in result.stderr


def test_a_mixture_knows_which_lines_the_model_was_trained_on(place: Path, tmp_path: Path) -> None:
    run, known = tmp_path / "run", "the cat sat on the mat"
    shutil.copytree(place / "run", run / "model")
    hasher = LineHasher()
    hasher.add(known)
    hasher.finish().write(run / "train.lines")
    (run / "run.json").write_text("{}")
    mixed = mix.with_ngram(sglm.load(run), place / "toy.arpa", weight=0.5)
    found = mixed.perplexity(f"{known}\na dog saw the cat and ran\n")
    assert (found.lines, found.lines_in_training) == (2, 1)
