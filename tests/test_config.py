"""The configuration: strict, and every error names the cure."""

from pathlib import Path

import pytest

from sglm.config import (
    Config,
    config_to_toml,
    differences,
    load_config,
    parse_config,
    shipped_configs,
)
from sglm.errors import ConfigError


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_recipes_load_and_survive_being_written(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_the_promised_recipes_are_shipped() -> None:
    assert {"tiny", "ptb", "wikitext2", "ptb-small", "wikitext2-small"} <= set(shipped_configs())


def test_none_can_be_written(tmp_path: Path) -> None:
    config = parse_config({"optimizer": {"clip_norm": "none"}}, "test")
    assert config.optimizer.clip_norm is None
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)).optimizer.clip_norm is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hiden=3", r"unknown key model.hiden; did you mean 'hidden'\?"),
        ("modle.hidden=3", r"unknown key modle; did you mean 'model'\?"),
        ("model.hidden=three", r"model.hidden = 'three': .*integer"),
        ("model.hidden=-3", r"model.hidden = -3: .*greater than 0"),
        ("model.hidden=1.5", r"model.hidden = 1.5: .*integer"),
        ("model.tied=1", r"model.tied = 1: .*boolean"),
        ("dropout.output=1.0", r"dropout.output = 1.0: .*less than 1"),
        ("optimizer.learning_rate=nan", r"learning_rate = nan: .*"),
        ("optimizer.learning_rate=inf", r"learning_rate = inf: .*finite"),
        ("schedule.mode=both", r"schedule.mode = 'both': .*'alternating', 'real' or 'synthetic'"),
        ("schedule.cycles=[]", r"schedule.cycles = \[\]: .*at least 1"),
        ("schedule.cycles=[1, -2]", r"schedule.cycles.1 = -2: .*greater than 0"),
        ("synthesizer.probe_every=1", r"probe_every = 1: .*"),
        ("schedule.cycles=[1e308, 1e308]", r"schedule: its cycles add up to more than 1e\+09"),
        ("train.batch=0", r"train.batch = 0: .*greater than 0"),
        ("hidden=3", r"--set 'hidden=3': write it as section.key=value"),
        ("model.hidden", r"write it as section.key=value"),
    ],
)
def test_wrong_values_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", [override])


def test_overrides_take_toml_values_and_bare_words() -> None:
    config = load_config(
        "tiny",
        ["model.hidden=64", "schedule.mode=real", "optimizer.kind='sgd'", "schedule.cycles=[1, 2]"],
    )
    assert config.model.hidden == 64
    assert (config.schedule.mode, config.optimizer.kind) == ("real", "sgd")
    assert config.schedule.cycle_lengths() == [1.0, 2.0]


def test_a_schedule_that_never_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match="cycles add up to more than"):
        load_config("tiny", ["schedule.growth=10", "schedule.count=400"])


def test_cycles_are_said_in_one_way_and_the_last_override_wins() -> None:
    with pytest.raises(ConfigError, match="either cycles or growth"):
        parse_config({"schedule": {"cycles": [1.0], "growth": 2.0}}, "test")
    config = load_config("tiny", ["schedule.first=3", "schedule.growth=2", "schedule.count=3"])
    assert config.schedule.cycle_lengths() == [3.0, 6.0, 12.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[model\n", "not valid TOML"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"model = 3\n", "model = 3"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tinny'; did you mean 'tiny'\?"):
        load_config("tinny")
    with pytest.raises(ConfigError, match=r"no.toml: does not exist; .*tiny"):
        load_config(str(tmp_path / "no.toml"))
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(str(folder))


def test_a_recipe_is_found_beside_a_folder_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ptb").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config("ptb").model.layers == 3


def test_differences_name_keys_and_values() -> None:
    assert differences(Config(), Config()) == []
    other = parse_config({"train": {"batch": 21}}, "test")
    assert differences(Config(), other) == ["train.batch: 20 → 21"]
