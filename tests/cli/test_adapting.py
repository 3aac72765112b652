"""`sglm eval --adapt` and `sglm adapt-train` as a user meets them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.model.folder import save_model
from sglm.scoring.evaluate import evaluate_split
from sglm.scoring.predictor import NetworkPredictor
from sglm.text.prepare import StoreSettings, prepare
from tests.tiny_models import LINES, make_network, make_store


def sglm_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`, and `model` for it."""
    folder = tmp_path_factory.mktemp("eval-adapt")
    (folder / "test.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    (folder / "train.txt").write_text(("\n".join(LINES) + "\n") * 20, encoding="utf-8")
    settings = StoreSettings(tokenizer="byte", valid=0.3, test=str(folder / "test.txt"))
    store = prepare([str(folder / "train.txt")], folder / "store", settings)
    tokenizer = store.tokenizer()
    save_model(make_network(tokenizer.vocab_size), folder / "model", tokenizer.fingerprint)
    tokenizer.save(folder / "model")
    return folder


def evaluated(folder: Path, *arguments: object) -> dict:
    result = sglm_command(
        "eval", folder / "model", "--data", folder / "store", "--json", *arguments
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def test_says_how_it_adapted_and_what_that_cost(folder: Path) -> None:
    shown = evaluated(folder, "--adapt", "cache", "--setting", "weight=0.25")
    assert shown["adapt"] == "cache"
    assert shown["adapt_settings"] == {"size": 500, "weight": 0.25, "sharpness": 0.3}
    assert shown["static_evaluations"] > 0
    lm = sglm.load(folder / "model").adapting("cache", weight=0.25)
    assert shown["nll_nats"] == pytest.approx(lm.evaluate(folder / "store", "test").nll_nats)
    static = evaluated(folder)
    assert static["adapt"] == "none"
    assert "adapt_settings" not in static
    table = sglm_command(
        "eval", folder / "model", "--text", folder / "test.txt", "--adapt", "dynamic"
    )
    assert table.exit_code == 0
    rows = [line.split() for line in table.stdout.splitlines()]
    assert ["adapting", "by", "dynamic"] in rows
    assert ["rule", "sgd"] in rows
    assert ["learning_rate", "1"] in rows
    assert "using rule=sgd, because the training text is missing (" in table.stderr


def test_tunes_on_one_half_of_valid_and_evaluates_the_other(folder: Path) -> None:
    whole = evaluated(folder, "--split", "valid")
    tuned = evaluated(folder, "--adapt", "cache", "--tune", "--setting", "size=50")
    assert tuned["split"] == "valid, second half"
    assert tuned["tokens"] == whole["tokens"] - whole["tokens"] // 2
    assert tuned["adapt_settings"]["size"] == 50
    on_test = evaluated(folder, "--adapt", "cache", "--tune", "--split", "test")
    assert on_test["split"] == "test"


def test_trains_the_network_for_synthetic_gradients(folder: Path) -> None:
    missing = sglm_command(
        "eval", folder / "model", "--data", folder / "store", "--adapt", "synthetic"
    )
    assert missing.exit_code == 2
    assert "train one with `sglm adapt-train" in missing.stderr
    arguments = ["adapt-train", folder / "model", "--data", folder / "store", "--segments", 3]
    trained = sglm_command(*arguments, "--json")
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.stdout)["model"] == str(folder / "model")
    assert evaluated(folder, "--adapt", "synthetic")["adapt_settings"] == {"steps": 2}
    # Not on the half that the network was trained on.
    valid = evaluated(folder, "--adapt", "synthetic", "--split", "valid")
    assert valid["split"] == "valid, second half"
    assert evaluated(folder, "--adapt", "cache", "--split", "valid")["split"] == "valid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapt", "cash"], "no adaptation 'cash'; did you mean 'cache'"),
        (["--adapt", "cache", "--setting", "weight"], "'weight' is not NAME=VALUE"),
        (["--adapt", "cache", "--setting", "weight=much"], "weight must be a number"),
        (["--setting", "weight=0.1"], "--setting belongs to --adapt KIND"),
        (["--tune"], "--tune chooses settings of --adapt KIND"),
        (["--adapt", "cache", "--setting", "size=999999999999"], "more than half of this machine"),
    ],
)
def test_bad_input_is_a_line(folder: Path, arguments: list[str], message: str) -> None:
    result = sglm_command("eval", folder / "model", "--data", folder / "store", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.strip().count("\n") <= 1


@pytest.mark.parametrize(
    ("store", "segments", "message"),
    [
        ("store", 0, "--segments: must be 1 or more"),
        ("small/store", 3, "tokens, fewer than 128; prepare a store with more"),
    ],
)
def test_nothing_to_train_on(folder: Path, store: str, segments: int, message: str) -> None:
    if not (folder / "small").exists():
        (folder / "small").mkdir()
        make_store(folder / "small", "byte", folder / "test.txt")
    result = sglm_command(
        "adapt-train", folder / "model", "--data", folder / store, "--segments", segments
    )
    assert result.exit_code == 2
    assert message in result.stderr


def test_settings_are_tuned_in_the_context_that_is_evaluated(folder: Path) -> None:
    """By words, where a line is a text; the first perplexity told is that of the defaults."""
    store = prepare(
        [str(folder / "train.txt")], folder / "words", StoreSettings(tokenizer="word", valid=0.3)
    )
    place, tokenizer = folder / "word-model", store.tokenizer()
    save_model(make_network(tokenizer.vocab_size), place, tokenizer.fingerprint)
    tokenizer.save(place)
    lm = sglm.load(place).adapting("cache")
    for context in ("carried", "reset"):
        expected = lm.evaluate(store, "valid", context, half="first").token_ppl  # type: ignore[arg-type]
        arguments = ["--data", store.folder, "--adapt", "cache", "--tune", "--context", context]
        shown = sglm_command("eval", place, *arguments)
        assert shown.exit_code == 0, shown.output
        first = next(line for line in shown.stderr.splitlines() if "weight" in line)
        assert float(first.split()[0].replace(",", "")) == pytest.approx(expected, abs=0.01)


def test_a_half_of_a_text_whose_white_space_is_not_in_its_ids_has_no_bytes(folder: Path) -> None:
    store = prepare(
        [str(folder / "train.txt")], folder / "halves", StoreSettings(tokenizer="word", valid=0.3)
    )
    predictor = NetworkPredictor(make_network(store.tokenizer().vocab_size))
    whole = evaluate_split(predictor, store, "valid")
    half = evaluate_split(predictor, store, "valid", half="first")
    assert whole.bytes
    assert half.bytes == 0
    assert half.bits_per_byte is None
    lm = LanguageModel(predictor, tokenizer=store.tokenizer())
    with pytest.raises(InputError, match="half"):
        lm.evaluate(store, "valid", half="frist")  # type: ignore[arg-type]


def test_what_only_the_training_text_can_give_names_a_cure(folder: Path) -> None:
    text = ["eval", folder / "model", "--text", folder / "test.txt", "--adapt", "dynamic"]
    asked = sglm_command(*text, "--setting", "rule=rms")
    assert asked.exit_code == 2
    assert "rule=rms needs the training text" in asked.stderr
    assert asked.stderr.rstrip().endswith("give --data DIR")
    given = sglm_command(*text, "--setting", "rule=rms", "--data", folder / "store")
    assert given.exit_code == 0, given.output
    assert ["rule", "rms"] in [line.split() for line in given.stdout.splitlines()]
    nowhere = sglm_command(*text, "--data", folder / "nowhere")
    assert nowhere.exit_code == 2
    assert "nowhere" in nowhere.stderr
    long = sglm_command(
        *("eval", folder / "model", "--data", folder / "store", "--adapt", "dynamic"),
        *("--setting", "segment=1000000"),
    )
    assert long.exit_code == 2
    assert "segment 1000000 needs a training text of more than 1000000 tokens" in long.stderr
    note = sglm_command(*text, "--context", "reset")
    assert "a line shorter than 32 tokens is read to its end before anything" in note.stderr
    alone = sglm_command("adapt-train", folder / "model")
    assert "--text" not in alone.stderr


def test_from_stdin_its_cost_is_not_timed(folder: Path) -> None:
    arguments = ["eval", str(folder / "model"), "--text", "-", "--adapt", "cache", "--json"]
    result = CliRunner().invoke(app, arguments, input=(folder / "test.txt").read_bytes())
    assert json.loads(result.stdout)["static_evaluations"] is None
