"""`sglm recipes` and `sglm config`: what there is to choose from, with its numbers."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import sglm
from sglm.cli.main import app
from sglm.cli.recipes import alike
from sglm.config import Config, load_config, parse_config, plain_values, shipped_configs
from sglm.config.recipes import recipes
from sglm.errors import ConfigError
from sglm.text.batcher import Batcher
from sglm.text.prepare import StoreSettings, prepare
from sglm.train.build import lookahead_steps, model_shape, stretch_windows
from sglm.train.dry_run.memory import plan_memory

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
# Of the libraries alone, where the recipes' numbers were taken; other builds of torch take more.
LIBRARIES_MIB = 422
# What an adaptive softmax chooses on the recipe's corpus, by its words' counts.
CHOSEN = {"wikitext2-small": ["model.cutoffs=[2878, 14934]"]}


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_every_file_in_configs_is_listed() -> None:
    files = {path.stem for path in (ROOT / "configs").glob("*.toml")}
    assert set(json.loads(shown("recipes", "--json"))) == files
    listed = shown("recipes")
    assert {line.split()[0] for line in listed.splitlines() if " M " in line} == files
    assert max(map(len, listed.splitlines())) <= 80


def test_the_ends_of_a_range_have_equal_decimals() -> None:
    assert alike([64.6, 65.0]) == ["64.6", "65.0"]
    assert alike([3.7, 3.71]) == ["3.70", "3.71"]
    assert alike([]) == []


@pytest.mark.parametrize("name", shipped_configs())
def test_parameters_and_memory_are_those_of_the_dry_run(name: str) -> None:
    about, config = recipes()[name], load_config(name, CHOSEN.get(name, []))
    shape = model_shape(config, about.vocabulary)
    assert about.parameters == shape.parameters
    ids_N = np.zeros(about.train_tokens, dtype=np.uint16)
    batcher = Batcher(
        ids_N,
        batch=config.train.batch,
        window=config.train.window,
        bos_id=0,
        stretch=stretch_windows(config),
        lookahead=lookahead_steps(config),
    )
    plan = plan_memory(config, shape, batcher, valid_bytes=0, device_type="cpu")
    own = (plan.peak - plan.base) / MIB
    # 8 MiB: the validation split, and the libraries' share, which varies by a few from run to run.
    assert about.memory_mib - LIBRARIES_MIB == pytest.approx(own, rel=0.02, abs=8)


@pytest.mark.parametrize("name", shipped_configs())
def test_a_recipe_trains_in_both_modes(name: str, tmp_path: Path) -> None:
    """Four steps on random ids of the whole vocabulary; those for a GPU with a smaller model."""
    about = recipes()[name]
    smaller = [] if about.minutes else ["model.hidden=50", "model.embedding=40", "train.batch=4"]
    overrides = [
        "schedule.unit=steps",
        "schedule.cycles=[2,2]",
        "train.log_every_steps=1",
        *smaller,
    ]
    config = load_config(name, overrides)
    length = 10 * config.train.batch * config.train.window
    ids_N = np.random.default_rng(0).integers(1, about.vocabulary, size=length)
    lines = [" ".join(map(str, line)) for line in np.array_split(ids_N, 50)]
    (tmp_path / "ids.txt").write_text("\n".join(lines))
    settings = StoreSettings(
        tokenizer="ids", vocab_size=about.vocabulary, eos_id=0, valid=0.1, test=0.0
    )
    store = prepare([str(tmp_path / "ids.txt")], tmp_path / "store", settings)
    reports = list[dict[str, Any]]()
    sglm.fit(name, store, tmp_path / "run", overrides=overrides, on_report=reports.append)
    # Line ends are told from words at once; there is nothing else to learn.
    assert all(each["nll_per_token"] < 1.1 * math.log(about.vocabulary) for each in reports)
    modes = [each["mode"] for each in reports if each["split"] == "train"]
    first, then = ("real", "synthetic")[:: 1 if config.schedule.start == "real" else -1]
    assert modes == [first, first, then, then]


def test_what_is_not_measured_is_shown_as_such() -> None:
    abouts = recipes()
    for line in shown("recipes").splitlines():
        if " M " in line:
            name, *_, last = line.split()
            assert (last == "–") == (abouts[name].perplexity is None)


def test_anybody_s_configuration_may_say_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    for about in ("[about]\nanything = [1, {at = 'all'}]\n", "about = 3\n"):
        path.write_text(about + "[model]\nhidden = 3\n")
        assert load_config(str(path)) == parse_config({"model": {"hidden": 3}}, "")
    with pytest.raises(ConfigError, match=r"unknown key about"):
        load_config("tiny", ["about.purpose=mine"])


def test_config_lists_every_key_with_its_default() -> None:
    listed = json.loads(shown("config", "--json"))
    values = Config().model_dump()
    expected = {f"{s}.{key}": value for s, keys in values.items() for key, value in keys.items()}
    assert {name: key["default"] for name, key in listed.items()} == expected
    assert all(key["sentence"].endswith(".") and key["values"] for key in listed.values())
    assert listed["model.layers"]["sentence"] == "Number of LSTM layers."
    assert listed["optimizer.clip_norm"]["values"] == "number above 0 or none"
    assert listed["schedule.mode"]["values"] == "alternating, real, synthetic"


def test_config_for_people_has_the_same_and_fits_80_columns() -> None:
    text = shown("config")
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    for name, key in json.loads(shown("config", "--json")).items():
        assert f" {name.partition('.')[2]} = " in flat
        assert key["sentence"] in flat


def test_defaults_are_shown_as_files_and_set_read_them(tmp_path: Path) -> None:
    """But for those that exclude one another."""
    section, overrides = "", []
    lines = [line for line in shown("config").splitlines() if not line.startswith("   ")]
    copied = [line.partition("   (")[0].split("  (")[0].strip() for line in lines]
    path = tmp_path / "copied.toml"
    path.write_text("\n".join(re.sub(r"(^\[\w+\]).*", r"\1", line) for line in copied))
    assert load_config(str(path), ["schedule.cycles=none"]) == Config()
    for line in shown("config").splitlines():
        if line.startswith("["):
            section = line[1:].partition("]")[0]
        elif line.startswith("  ") and line[2] != " ":
            overrides.append(f"{section}.{line.strip().partition('   (')[0].replace(' = ', '=')}")
    assert len(overrides) > 40
    assert load_config("tiny", overrides) == Config()


def test_config_prints_a_configuration_as_it_would_be_used(tmp_path: Path) -> None:
    path = tmp_path / "copy.toml"
    path.write_text(shown("config", "tiny", "--set", "model.hidden=3"))
    wanted = load_config("tiny", ["model.hidden=3"])
    assert load_config(str(path)) == wanted
    as_json: dict[str, Any] = json.loads(
        shown("config", "tiny", "--set", "model.hidden=3", "--json")
    )
    assert as_json == plain_values(wanted)
    refused = CliRunner().invoke(app, ["config", "--set", "model.hidden=3"])
    assert refused.exit_code == 2
    assert "sglm config tiny" in refused.stderr
