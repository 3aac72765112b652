"""The configuration: strict, and every error names the cure."""

import os
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
from sglm.train.build import stretch_windows


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_recipes_load_and_survive_being_written(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_the_promised_recipes_are_shipped() -> None:
    for_a_cpu = {"tiny", "ptb-small", "wikitext2-small", "book", "chars", "code", "short-window"}
    for_a_gpu = {"ptb", "wikitext2", "ptb-alternating-paper", "wikitext2-alternating-paper"}
    assert for_a_cpu | for_a_gpu <= set(shipped_configs())


@pytest.mark.parametrize("corpus", ["ptb", "wikitext2"])
def test_the_alternating_paper_ran_for_320_epochs_with_either_restart_base(corpus: str) -> None:
    """Shang & Zhang 2019: each restart doubles the age of the run; base 5 or base 160."""
    recipe = f"{corpus}-alternating-paper"
    base_5 = load_config(recipe).schedule.cycle_lengths()
    assert [sum(base_5[: index + 1]) for index in range(7)] == [5, 10, 20, 40, 80, 160, 320]
    base_160 = load_config(recipe, ["schedule.cycles=[160, 160]"]).schedule.cycle_lengths()
    assert base_160 == [160, 160]


def test_penalties_are_off_unless_asked_for() -> None:
    assert (Config().regularizer.activation, Config().regularizer.temporal) == (0, 0)


def test_none_can_be_written(tmp_path: Path) -> None:
    config = parse_config({"optimizer": {"clip_norm": "none"}}, "test")
    assert config.optimizer.clip_norm is None
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)).optimizer.clip_norm is None


@pytest.mark.parametrize("factor", ["calibrated", 0.0, 0.3, 1.0])
def test_a_factor_is_a_number_or_calibrates_itself(factor: str | float, tmp_path: Path) -> None:
    config = parse_config({"synthesizer": {"factor": factor}}, "test")
    assert config.synthesizer.factor == factor
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)) == config
    assert load_config("tiny", [f"synthesizer.factor={factor}"]).synthesizer.factor == factor


def test_a_horizon_is_a_whole_number_of_windows(tmp_path: Path) -> None:
    train = {"window": 5, "horizon": 20}
    config = parse_config({"train": train, "schedule": {"mode": "real"}}, "test")
    path = tmp_path / "config.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)).train.horizon == 20
    assert Config().train.horizon is None
    for horizon in (3, 21):
        with pytest.raises(ConfigError, match=rf"horizon = {horizon} is no multiple of window = 5"):
            parse_config({"train": {**train, "horizon": horizon}}, "test")


def test_a_horizon_and_random_truncation_exclude_each_other() -> None:
    for horizon in (5, 20):
        with pytest.raises(ConfigError, match="either a horizon or random truncation"):
            parse_config(
                {"train": {"window": 5, "horizon": horizon, "truncation": "random"}}, "test"
            )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.hiden=3", r"unknown key model.hiden; did you mean 'hidden'\?"),
        ("modle.hidden=3", r"unknown key modle; did you mean 'model'\?"),
        ("model.hidden=three", r"model.hidden = 'three': .*integer"),
        ("model.hidden=-3", r"model.hidden = -3: .*greater than 0"),
        ("model.hidden=1.5", r"model.hidden = 1.5: .*integer"),
        ("model.tied=1", r"model.tied = 1: must be true or false"),
        ("dropout.output=1.0", r"dropout.output = 1.0: .*less than 1"),
        ("regularizer.activation=-1.0", r"regularizer.activation = -1.0: .*equal to 0"),
        ("optimizer.learning_rate=nan", r"learning_rate = nan: .*"),
        ("optimizer.learning_rate=inf", r"learning_rate = inf: .*finite"),
        ("schedule.mode=both", r"schedule.mode = 'both': .*'alternating', 'real' or 'synthetic'"),
        ("schedule.cycles=[]", r"schedule.cycles = \[\]: .*at least 1"),
        ("schedule.cycles=[1, -2]", r"schedule.cycles.1 = -2: .*greater than 0"),
        ("synthesizer.probe_every=1", r"probe_every = 1: .*"),
        ("schedule.cycles=[1e308, 1e308]", r"schedule: its cycles add up to more than 1e\+09"),
        ("synthesizer.factor=twice", r"synthesizer.factor.* = 'twice': .*"),
        ("synthesizer.factor=1.5", r"synthesizer.factor.* = 1.5: .*less than or equal to 1"),
        ("optimizer.clip_norm=off", r"clip_norm = 'off': must be a number or none$"),
        ("schedule.cycles=3", r"schedule.cycles = 3: must be a list, as \[1.0, 2.0\] or none$"),
        ("schedule.cycles=['a']", r"schedule.cycles.0 = 'a': must be a number$"),
        ("model.cutoffs=[0, 3]", r"model.cutoffs.0 = 0: must be greater than 0$"),
        ("train.batch=16\ntrain.window=3", r"sets more than one value; give --set for each"),
        ("train.horizon=0", r"train.horizon = 0: .*greater than 0"),
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


def test_cycles_are_given_in_one_way_and_the_last_override_wins() -> None:
    with pytest.raises(ConfigError, match="either cycles or growth"):
        parse_config({"schedule": {"cycles": [1.0], "growth": 2.0}}, "test")
    config = load_config("tiny", ["schedule.first=3", "schedule.growth=2", "schedule.count=3"])
    assert config.schedule.cycle_lengths() == [3.0, 6.0, 12.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[model\n", "not valid TOML"),
        (
            b"[model]\nembedding = none  # off\n",
            'not valid TOML.*; text is quoted: embedding = "none"',
        ),
        (b"[schedule]\nmode = real\n", '; text is quoted: mode = "real"$'),
        (b"[model]\nhidden = 3 4\n", r"line 2, column \d+\)$"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"model = 3\n", "model = 3"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


def test_a_missing_configuration_is_named_with_those_there_are(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["train.window=5", "train.horizon=10"], "train.horizon"),
        (['train.truncation="random"'], "train.truncation"),
    ],
)
def test_horizons_and_random_truncation_are_for_real_gradients(
    overrides: list[str], named: str
) -> None:
    """With them the observed gradient is not the state's: a synthesizer cannot learn from it."""
    with pytest.raises(ConfigError, match=named) as caught:
        load_config("tiny", overrides)
    assert 'schedule.mode = "real"' in str(caught.value)
    load_config("tiny", [*overrides, "schedule.mode=real"])


@pytest.mark.parametrize("kind", ["adjoint", "feedback", "direct", "critic"])
def test_what_predicts_no_gradients_learns_no_auxiliary_one(kind: str) -> None:
    with pytest.raises(ConfigError, match="leave out auxiliary"):
        load_config("tiny", [f"synthesizer.kind={kind}", "synthesizer.auxiliary=true"])


@pytest.mark.parametrize("key", ["every", "reach"])
def test_an_adjoint_reads_something_each_time(key: str) -> None:
    with pytest.raises(ConfigError, match=f"synthesizer.{key} = 0: .*greater than 0"):
        load_config("tiny", ["synthesizer.kind=adjoint", f"synthesizer.{key}=0"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["synthesizer.inject=other-lane", "synthesizer.kind=mlp"], 'set kind = "adjoint"'),
        (
            ["synthesizer.inject=other-lane", "train.batch=1"],
            r"needs two lanes; raise train\.batch",
        ),
        (["schedule.mode=real", "train.past=state"], "needs a horizon: set horizon"),
        (
            ["schedule.mode=real", "train.past=state", "train.window=5", "train.horizon=5"],
            "a horizon of one window reads nothing again",
        ),
        (["optimizer.kind=sgd", "optimizer.beta1=0.8"], "beta1 and beta2 are Adam's"),
        (["synthesizer.inject=other-lane", "synthesizer.kind=critic"], 'set kind = "adjoint"'),
        (["synthesizer.every=4", "synthesizer.kind=critic"], 'leave out every, or set kind = "adj'),
        (["synthesizer.reach=5", "synthesizer.kind=mlp"], 'leave out reach, or set kind = "adj'),
        (["synthesizer.kind=lookahead"], "must be 'adjoint', 'feedback', .* or 'linear'"),
    ],
)
def test_controls_that_cannot_be_are_refused_with_their_cure(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("tiny", overrides)


def test_how_often_an_adjoint_reads_depends_on_the_windows_unless_it_is_given() -> None:
    def stretch(*overrides: str) -> int:
        return stretch_windows(load_config("tiny", ["synthesizer.reach=10", *overrides]))

    assert [stretch(f"train.window={window}") for window in (2, 9, 10, 35)] == [1, 1, 32, 32]
    assert [stretch(f"train.window={w}", "synthesizer.every=2") for w in (2, 35)] == [2, 2]
    assert stretch("train.window=35", "synthesizer.kind=direct") == 32
    assert stretch("train.window=35", "synthesizer.kind=critic", "synthesizer.reach=10") == 1


def test_a_wrong_factor_is_explained_without_the_library_s_inner_names() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("tiny", ["synthesizer.factor=twice"])
    assert "constrained" not in str(caught.value)
    assert "synthesizer.factor = 'twice'" in str(caught.value)


def test_a_recipe_as_an_editor_saved_it(tmp_path: Path) -> None:
    """With a byte order mark, or in UTF-16, as PowerShell's > writes."""
    path = tmp_path / "a.toml"
    text = "[model]\nhidden = 9\n"
    path.write_bytes(text.encode("utf-8-sig"))
    assert load_config(str(path)).model.hidden == 9
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ConfigError, match="UTF-16"):
        load_config(str(path))


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    for name in ("a.toml", "a"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ConfigError, match="a pipe"):
            load_config(str(tmp_path / name))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"cutoffs": [3, 9]}}, 'adaptive softmax; set softmax = "adaptive"'),
        ({"model": {"softmax": "adaptive", "cutoffs": [9, 3]}}, r"\[9, 3\] must ascend"),
        ({"model": {"softmax": "adaptive", "cutoffs": [3, 3]}}, r"\[3, 3\] must ascend"),
        ({"model": {"softmax": "adaptive", "cutoffs": []}}, "cutoffs = .* at least 1"),
        ({"model": {"softmax": "adaptive", "cutoffs": [0]}}, "cutoffs.0 = 0: .*greater than 0"),
        (
            {"model": {"softmax": "adaptive"}, "train": {"cuda_graph": True}},
            "cuda_graph needs .* leave it out",
        ),
    ],
)
def test_an_adaptive_softmax_that_cannot_be_is_refused_with_the_cure(
    sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(sections, "test")


def test_cutoffs_are_no_more_than_a_model_folder_takes() -> None:
    values = {"model": {"softmax": "adaptive", "cutoffs": list(range(1, 102))}}
    with pytest.raises(ConfigError, match="cutoffs"):
        parse_config(values, "test")


def test_momentum_is_of_sgd() -> None:
    assert parse_config({"optimizer": {"kind": "sgd", "momentum": 0.9}}, "test").optimizer.momentum
    with pytest.raises(ConfigError, match="momentum is for kind"):
        parse_config({"optimizer": {"momentum": 0.9}}, "test")


def test_cycles_of_none_leave_geometric_ones(tmp_path: Path) -> None:
    path = tmp_path / "geometric.toml"
    path.write_text("[schedule]\nfirst = 2.0\ngrowth = 3.0\ncount = 2\n")
    for overrides in ([], ["schedule.cycles=none"]):
        assert load_config(str(path), overrides).schedule.cycle_lengths() == [2.0, 6.0]
