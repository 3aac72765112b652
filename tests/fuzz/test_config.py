"""Configurations: TOML of any shape makes a configuration or a ConfigError."""

import datetime
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.config import Config, config_to_toml, load_config, parse_config, plain_values
from sglm.errors import ConfigError, InputError
from sglm.train.build import build_schedule
from tests.fuzz.examples import VALUES, altered, examples, one_of_these, spoilt

TINY = plain_values(load_config("tiny"))
TOML = config_to_toml(load_config("tiny")).encode()
EXTREME = [
    b"[" * 100_000,
    b"a = " + b"[" * 100_000,
    b"a = " + b"{b=" * 5000,
    b"a" + b".a" * 5000 + b" = 1",
    b"[train]\nseed = " + b"9" * 5000,
    b"[train]\nseed = 0x" + b"f" * 5000,
    b"model = 1979-05-27T07:32:00Z\n",
    b"[model]\nhidden = 07:32:00\n",
    b"[schedule]\nfirst = inf\ngrowth = nan\n",
    b"[schedule]\nfirst = 1e-300\n",
    b"[schedule]\nunit = 'steps'\ncycles = [1e-300]\n",
    b"[schedule]\ncycles = [" + b"1.0," * 20_000 + b"]\n",
    b"[schedule]\ngrowth = 1e300\ncount = 10000\n",
    b"[optimizer]\nlearning_rate = 1" + b"0" * 400 + b"\n",
    b"[model]\nhidden = 3\nhidden = 4\n",
    b"\xef\xbb\xbf[model]\n",
    b"\xff\xfe[\0m\0",
    b"[model]\0",
    b"[model]\r[train]",
    b'[model]\n"hid\\u202eden" = 3\n',
]


def check(config: Config) -> None:
    """What holds for every configuration that is accepted."""
    assert parse_config(plain_values(config), "again") == config
    for section in plain_values(config).values():
        for value in section.values():
            assert not isinstance(value, float) or math.isfinite(value)
    assert build_schedule(config, 100).total_steps >= 1


@given(st.one_of(one_of_these(EXTREME), spoilt(TOML), st.binary(max_size=200)))
@examples(120)
def test_any_file_is_a_configuration_or_a_config_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "some.toml"
    path.write_bytes(raw)
    try:
        config = load_config(str(path))
    except ConfigError as error:
        assert len(str(error)) < 2000
        return
    check(config)
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)) == config


@given(altered(TINY))
@examples(150)
def test_any_values_are_a_configuration_or_a_config_error(values: Any) -> None:
    try:
        config = parse_config(values, "test")
    except ConfigError as error:
        assert len(str(error)) < 2000
        assert str(error).count("\n") <= 1
        return
    check(config)


KEYS = st.sampled_from([f"{section}.{key}" for section in TINY for key in TINY[section]])
PLAIN = st.one_of(st.floats(), st.integers(), st.booleans(), st.dates(), VALUES)


@given(
    st.one_of(
        st.text(st.characters(), max_size=40),
        st.builds(lambda key, value: f"{key}={value}", KEYS, PLAIN),
    )
)
@examples(150)
def test_any_override_is_taken_or_a_config_error(text: str) -> None:
    try:
        check(load_config("tiny", [text]))
    except ConfigError as error:
        assert len(str(error)) < 2000


def test_dates_and_sections_in_place_of_values_are_named() -> None:
    for value in (datetime.date(1979, 5, 27), datetime.time(7), {"a": {}}, [[]], b"", 10**400):
        with pytest.raises(ConfigError, match=r"test: model\.hidden"):
            parse_config({"model": {"hidden": value}}, "test")


@pytest.mark.parametrize("name", ["a\0b.toml", "/dev/zero", "x" * 5000, ".", "..", "", "\ud800"])
def test_a_strange_name_of_a_file_is_refused(name: str) -> None:
    with pytest.raises((InputError, OSError)):
        load_config(name)


def test_a_file_that_never_ends_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "endless.toml"
    path.symlink_to("/dev/zero")
    with pytest.raises(ConfigError):
        load_config(str(path))
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="larger than"):
        load_config(str(path))
