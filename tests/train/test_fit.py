"""Training from Python, and from the weights of a trained model."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from sglm.config import Config, config_to_toml
from sglm.errors import ConfigError, InputError, Stopped
from sglm.optim.precision import unchecked_precision
from sglm.text.overlap import LineHasher
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train.build import model_shape, token_counts
from sglm.train.loop import train
from sglm.train.starting_point import StartingPoint
from tests.scoring.test_ambient import AMBIENT
from tests.train.test_loop import metrics, stop_at

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, word_store: TokenStore) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    sections = {
        "model": {"layers": 2, "hidden": 8},
        "train": {"batch": 4, "window": 5, "log_every_steps": 10},
        "schedule": {"unit": "steps", "cycles": [20.0, 20.0]},
    }
    sglm.fit(sections, word_store, run)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_it_does_what_the_command_does_and_reports(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config, reports = tiny_config(), list[dict[str, Any]]()
    toml = tmp_path / "config.toml"
    toml.write_text(config_to_toml(config))
    outcome = sglm.fit(config, word_store, tmp_path / "a", on_report=reports.append)
    assert outcome.steps == 40
    done = command("train", toml, "--data", word_store.folder, "--out", tmp_path / "b")
    assert done.exit_code == 0, done.output
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(tensor, weights(tmp_path / "b")[name])
    valid = [{**each} for each in reports if each["split"] == "valid"]
    assert all(each.pop("seconds") > 0 for each in valid)
    assert valid == metrics(tmp_path / "a")
    train = [each for each in reports if each["split"] == "train"]
    assert [each["step"] for each in train] == [10, 20, 30, 40]
    assert train[-1]["tokens_seen"] == valid[-1]["tokens_seen"]
    assert train[-1]["tokens_per_s"] > 0
    assert 0 < train[0]["seconds"] < train[-1]["seconds"]
    again = sglm.fit(str(toml), word_store.folder, tmp_path / "a")
    assert again.already_finished
    shutil.rmtree(tmp_path / "a" / "model")
    with pytest.raises(InputError, match=r"is finished, but .*model is not there; .* take .*last"):
        sglm.fit(str(toml), word_store.folder, tmp_path / "a")
    shutil.copytree(tmp_path / "a" / "last", tmp_path / "a" / "model")
    assert sglm.fit(str(toml), word_store.folder, tmp_path / "a").already_finished
    (tmp_path / "a" / "model" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"is finished, but .*config\.json"):
        sglm.fit(str(toml), word_store.folder, tmp_path / "a")
    (tmp_path / "a" / "run.json").unlink()
    with pytest.raises(InputError, match=r"run\.json: is missing, so the run cannot be continued"):
        sglm.fit(str(toml), word_store.folder, tmp_path / "a")


def test_a_training_that_ends_worse_than_a_guess_says_so(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config, said = tiny_config(optimizer={"learning_rate": 100.0, "averaging": 0.0}), io.StringIO()
    outcome = sglm.fit(config, word_store, tmp_path / "run", console=said)
    assert outcome.best_token_ppl is not None
    assert outcome.best_token_ppl > 1e7
    assert outcome.diagnosis is not None
    assert "predicts worse than a guess" in outcome.diagnosis
    assert "lower optimizer.learning_rate" in outcome.diagnosis
    told = [line for line in said.getvalue().splitlines() if "validation perplexity" in line]
    assert told
    assert max(map(len, told)) <= 80  # not with hundreds of digits


def test_an_exception_of_the_listener_ends_it_and_the_next_call_goes_on(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(
        train={"batch": 4, "window": 5, "log_every_steps": 10, "checkpoint_every_steps": 10}
    )

    def listen(report: dict[str, Any]) -> None:
        if report["step"] == 30:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        sglm.fit(config, word_store, tmp_path / "a", on_report=listen)
    sglm.fit(config, word_store, tmp_path / "a")
    sglm.fit(config, word_store, tmp_path / "b")
    for name, tensor in weights(tmp_path / "a").items():
        assert torch.equal(tensor, weights(tmp_path / "b")[name])


def test_a_run_of_another_format_is_not_continued(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    sglm.fit(tiny_config(), word_store, tmp_path / "run")
    identity = tmp_path / "run" / "run.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"format_version": 99}))
    with pytest.raises(InputError, match=r"format 99, this sglm reads 1; use the version that"):
        sglm.fit(tiny_config(), word_store, tmp_path / "run")


def test_training_starts_from_the_given_weights_also_when_it_is_continued(
    tiny_config: MakeConfig, word_store: TokenStore, trained: Path, tmp_path: Path
) -> None:
    config, precision = tiny_config(), unchecked_precision("fp32", torch.device("cpu"))
    start = StartingPoint.open(trained)
    sglm.fit(config, word_store, tmp_path / "whole", start_from=trained)
    with pytest.raises(Stopped):
        train(
            config,
            word_store,
            tmp_path / "cut",
            precision=precision,
            console=io.StringIO(),
            start=start,
            stop_signal=stop_at(1),
        )
    # Stopped before the first step: the start is all that has been saved.
    first = TokenStore.open(word_store.folder)
    sglm.fit(config, first, tmp_path / "cut", start_from=trained)
    sglm.fit(config, word_store, tmp_path / "fresh")
    whole, cut, fresh = (weights(tmp_path / name) for name in ("whole", "cut", "fresh"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert not all(torch.equal(tensor, fresh[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("rate", [1e-30])
def test_with_a_rate_of_nothing_the_weights_stay_the_given_ones(
    tiny_config: MakeConfig, word_store: TokenStore, trained: Path, tmp_path: Path, rate: float
) -> None:
    config = tiny_config(optimizer={"learning_rate": rate})
    sglm.fit(config, word_store, tmp_path / "run", start_from=trained)
    expected = load_file(trained / "model" / "model.safetensors")
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name]), name


def test_what_the_start_was_trained_on_was_trained_on(
    tiny_config: MakeConfig, word_store: TokenStore, trained: Path, tmp_path: Path
) -> None:
    seen = "\n".join(f"the model has read line {number} before" for number in range(30))
    (tmp_path / "other.txt").write_text("something else altogether, line after line\n" * 300)
    given = StoreSettings(tokenizer_of=trained)
    other = prepare([str(tmp_path / "other.txt")], tmp_path / "other", given)
    hasher = LineHasher()
    hasher.add(seen)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    hasher.finish().write(run / "train.lines")
    sglm.fit(tiny_config(), other, tmp_path / "further", start_from=run)
    again = sglm.load(tmp_path / "further").perplexity(f"{seen}\nand a line that nobody has seen\n")
    assert (again.lines_in_training, again.lines) == (30, 31)
    shutil.copytree(run / "model", tmp_path / "bare")
    sglm.fit(tiny_config(), other, tmp_path / "unknown", start_from=tmp_path / "bare")
    assert sglm.load(tmp_path / "unknown").perplexity(seen).lines_in_training is None


def test_a_run_is_continued_only_from_the_same_start(
    tiny_config: MakeConfig, word_store: TokenStore, trained: Path, tmp_path: Path
) -> None:
    config = tiny_config()
    sglm.fit(config, word_store, tmp_path / "from", start_from=trained)
    sglm.fit(config, word_store, tmp_path / "random")
    with pytest.raises(InputError, match="started from other weights; give the --from"):
        sglm.fit(config, word_store, tmp_path / "from")
    with pytest.raises(InputError, match="started from random weights; give no --from"):
        sglm.fit(config, word_store, tmp_path / "random", start_from=trained)


def test_a_start_that_does_not_fit_is_refused_with_the_cure(
    tiny_config: MakeConfig, word_store: TokenStore, trained: Path, tmp_path: Path
) -> None:
    text = tmp_path / "other.txt"
    text.write_text("other words here\n" * 200)
    other = prepare([str(text)], tmp_path / "other", StoreSettings(tokenizer="word"))
    out = tmp_path / "run"
    with pytest.raises(InputError, match=r"--tokenizer-of .*model"):
        sglm.fit(tiny_config(), other, out, start_from=trained)
    with pytest.raises(ConfigError, match=r"--set model\.layers=2 --set model\.hidden=8"):
        sglm.fit({"model": {"layers": 1, "hidden": 9}}, word_store, out, start_from=trained)
    shared = ("--data", word_store.folder, "--out", out, "--from", trained)
    for dry_run in ([], ["--dry-run"]):
        refused = command("train", "tiny", *shared, *dry_run)
        assert refused.exit_code == 2
        assert "network of another shape" in refused.stderr
    refused = command("train", "tiny", *shared[:-1], tmp_path)
    assert refused.exit_code == 2
    assert "model" in refused.stderr
    assert not out.exists()


def test_from_an_adaptive_softmax_its_cutoffs_and_its_order_are_taken(
    tiny_config: MakeConfig, word_store: TokenStore, trained: Path, tmp_path: Path
) -> None:
    model = {"softmax": "adaptive", "cutoffs": [4, 9]}
    sglm.fit(tiny_config(model=model), word_store, tmp_path / "old")
    old = load_file(tmp_path / "old" / "model" / "model.safetensors")
    # The cutoffs are left to be chosen, and would be others for this text.
    config = tiny_config(model={"softmax": "adaptive"}, optimizer={"learning_rate": 1e-30})
    assert model_shape(config, 99, token_counts(word_store)).cutoffs != (4, 9)
    sglm.fit(config, word_store, tmp_path / "new", start_from=tmp_path / "old")
    assert all(torch.equal(each, old[name]) for name, each in weights(tmp_path / "new").items())
    assert "cutoffs = [4, 9]" in (tmp_path / "new" / "config.toml").read_text()
    out = tmp_path / "refused"
    for section, start, cure in (
        ({"softmax": "adaptive", "cutoffs": [3]}, tmp_path / "old", r"model\.cutoffs=\[4,9\]"),
        ({}, tmp_path / "old", r"model\.softmax=adaptive"),
        (model, trained, r"model\.softmax=full --set model\.cutoffs=none"),
    ):
        with pytest.raises(ConfigError, match=f"--set {cure}$"):
            sglm.fit(tiny_config(model=section), word_store, out, start_from=start)
    assert not out.exists()


def test_overrides_go_with_a_recipe_alone(word_store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="change the values in config itself"):
        sglm.fit({}, word_store, tmp_path / "run", overrides=["train.seed=1"])
    with pytest.raises(ConfigError, match="model"):
        sglm.fit({"modell": {}}, word_store, tmp_path / "run")
    with pytest.raises(InputError, match=r"overrides must be a list, .* \['train.seed=1'\]"):
        sglm.fit("tiny", word_store, tmp_path / "run", overrides="train.seed=1")


def test_a_recipe_that_was_read_is_a_mapping(word_store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.window"):
        sglm.fit({"about": {"purpose": "x"}, "train": {"window": 100_000}}, word_store, tmp_path)


def test_what_cannot_be_called_is_refused_at_once(word_store: TokenStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on_report must be a function, not int"):
        sglm.fit({}, word_store, tmp_path / "run", on_report=1)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_a_model_that_was_reported_is_there_although_the_listener_ends_it(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    def listen(report: dict[str, Any]) -> None:
        if report["split"] == "valid":
            raise KeyError(report["token_ppl"])

    with pytest.raises(KeyError) as ended:
        sglm.fit(tiny_config(), word_store, tmp_path / "run", on_report=listen)
    evaluated = sglm.load(tmp_path / "run").evaluate(word_store, "valid")
    assert evaluated.token_ppl == pytest.approx(ended.value.args[0], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "float32"}, "precision 'float32' is unknown"),
        ({"precision": None}, "precision None is unknown"),
        ({"config": None}, "a configuration must be given as a path"),
        ({"config": ["tiny"]}, "a configuration must be given as a path"),
        ({"config": "tiny", "overrides": 5}, "overrides must be a list of str"),
        ({"config": "tiny", "overrides": [1]}, "overrides must be a list of str"),
        ({"config": "tiny", "console": "x"}, "console must be a text stream such as sys.stderr"),
        (
            {"config": "tiny", "console": SimpleNamespace(write=len)},
            "with write, flush, isatty, not",
        ),
    ],
)
def test_wrong_arguments_are_named(
    tiny_config: MakeConfig,
    word_store: TokenStore,
    tmp_path: Path,
    arguments: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        sglm.fit(**{"config": tiny_config(), **arguments}, store=word_store, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "mode",
    ["no gradients", "inference", "autocast to bfloat16", "default float64", "default device meta"],
)
def test_modes_of_the_caller_change_no_weight(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path, mode: str
) -> None:
    sglm.fit(tiny_config(), word_store, tmp_path / "plain")
    with AMBIENT[mode]():
        sglm.fit(tiny_config(), word_store, tmp_path / "run")
        assert torch.get_default_dtype() == (
            torch.float64 if mode == "default float64" else torch.float32
        )
    for name, tensor in weights(tmp_path / "plain").items():
        assert torch.equal(tensor, weights(tmp_path / "run")[name])


def test_the_cure_for_another_shape_is_whole(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path, trained: Path
) -> None:
    """What it says is enough, whatever differs."""
    model = {"layers": 2, "hidden": 10, "softmax": "adaptive", "cutoffs": [9]}
    with pytest.raises(ConfigError, match="another shape") as refused:
        sglm.fit(tiny_config(model=model), word_store, tmp_path / "run", start_from=trained)
    cures = dict(part.split("=") for part in str(refused.value).split() if "model." in part)
    assert cures == {
        "model.softmax": "full",
        "model.cutoffs": "none",
        "model.hidden": "8",
        "model.embedding": "8",
    }


def test_a_forgotten_start_is_named_before_what_it_changed(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(model={"layers": 1, "hidden": 8, "softmax": "adaptive", "cutoffs": [9]})
    chosen = tiny_config(model={"layers": 1, "hidden": 8, "softmax": "adaptive"})
    sglm.fit(config, word_store, tmp_path / "first")
    sglm.fit(chosen, word_store, tmp_path / "run", start_from=tmp_path / "first")
    with pytest.raises(InputError, match="give the --from it was started with"):
        sglm.fit(chosen, word_store, tmp_path / "run")
