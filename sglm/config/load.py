"""Converts a TOML file and overrides into a checked configuration, and back."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from sglm.config.schema import GEOMETRIC_CYCLES, Config
from sglm.errors import ConfigError, InputError, did_you_mean, short_repr
from sglm.storage.names import META_FILE
from sglm.storage.untrusted import read_bounded

_LARGEST_FILE_BYTES = 1 << 20
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
# The name of a table for readers and `sglm recipes`; it has no effect on a run.
ABOUT = "about"
# pydantic's name of a type → its description in messages.
_ALLOWED_VALUES = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list, as [1.0, 2.0]",
    "too_short": "a list of at least 1",
    "string": "text",
    "model": "a table of keys",
}


def shipped_configs() -> list[str]:
    """Returns the names of the recipes that come with sglm."""
    folder = resources.files("sglm.configs")
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_config(source: str, overrides: Iterable[str] = ()) -> Config:
    """Reads a configuration.

    Args:
        source: Path of a TOML file, or name of a recipe.
        overrides: Assignments `section.key=value`, each with its value written as in TOML (quotes
            may be left out).

    Raises:
        ConfigError: There is no such file or recipe, it is not TOML, a key is unknown, or a value
            has the wrong type or is out of range.
    """
    values = _read_toml(source)
    values.pop(ABOUT, None)
    for override in overrides:
        _apply(values, override)
    return parse_config(values, source)


def read_about(source: str) -> dict[str, Any]:
    """Returns the `[about]` table of a configuration; empty if it has none.

    Raises:
        ConfigError: see `load_config`.
    """
    about = _read_toml(source).get(ABOUT)
    return about if isinstance(about, dict) else {}


def parse_config(values: Mapping[str, Any], source: str) -> Config:
    """Checks plain values against the types of `schema`.

    Args:
        values: Tables of values, by section.
        source: Name of the configuration in error messages.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range. The message
            names up to two such keys, each with the values that it may have.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # A value that may have several types yields an error for each: they are joined to one line.
        by_key: dict[tuple[Any, ...], list[str]] = {}
        for problem in error.errors():
            # Items of a list are distinguished by their index.
            place = problem["loc"][:2], *(i for i in problem["loc"][2:] if isinstance(i, int))
            by_key.setdefault(place, []).append(_explain(problem))
        lines = [
            " or ".join([first, *(line.partition(": must be ")[2] for line in others)])
            + (" or none" if not items and _may_be_none(key) and ": must be " in first else "")
            for (key, *items), (first, *others) in list(by_key.items())[:2]
        ]
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def plain_values(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the configuration as plain values, which `parse_config` reads back unchanged."""
    values = config.model_dump()
    if config.schedule.cycles is not None:
        for key in GEOMETRIC_CYCLES:
            del values["schedule"][key]
    return values


def config_to_toml(config: Config) -> str:
    """Returns the configuration as TOML with every value; `load_config` reads it back unchanged."""
    lines = []
    for section, values in plain_values(config).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def differences(old: Config, new: Config) -> list[str]:
    """Returns `section.key: old → new` for every value that differs."""
    old_values, new_values = old.model_dump(), new.model_dump()
    return [
        f"{section}.{key}: {value} → {new_values[section][key]}"
        for section, values in old_values.items()
        for key, value in values.items()
        if new_values[section][key] != value
    ]


def _read_toml(source: str) -> dict[str, Any]:
    text = _read(source)
    try:
        return _parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{source}: not valid TOML: {error}{_unquoted(text, error)}") from None


def _unquoted(text: str, error: ValueError) -> str:
    """Returns a hint about quotes if the invalid line sets a key to an unquoted word."""
    where = re.search(r"at line (\d+)", str(error))
    line = text.splitlines()[int(where[1]) - 1 :][:1] if where else []
    found = re.fullmatch(r"\s*([\w-]+)\s*=\s*([A-Za-z][\w-]*)\s*(#.*)?", line[0]) if line else None
    return f'; text is quoted: {found[1]} = "{found[2]}"' if found else ""


def _read(source: str) -> str:
    path = Path(source)
    # A recipe's name means the recipe, even if a folder of that name exists here.
    if source in shipped_configs() and not path.is_file():
        return (resources.files("sglm.configs") / f"{source}.toml").read_text(encoding="utf-8")
    if (path / META_FILE).is_file():
        raise ConfigError(
            f"{source}: a token store, not a configuration; the configuration comes first, then the"
            f" store: tiny --data {source}"
        )
    if path.suffix != ".toml" and (path.is_dir() or not path.exists()):
        raise ConfigError(
            f"no configuration {source!r}{did_you_mean(source, shipped_configs())}"
            " (or give the path of a .toml file)"
        )
    if path.is_dir() or not path.exists():
        what = "is a folder" if path.is_dir() else "does not exist"
        known = ", ".join(shipped_configs())
        raise ConfigError(f"{source}: {what}; give a TOML file or one of: {known}")
    if not path.is_file():
        raise ConfigError(f"{source}: a pipe or a device; give an ordinary file")
    try:
        raw = read_bounded(path, _LARGEST_FILE_BYTES)
        return raw.decode("utf-8-sig")  # editors put a byte order mark in front
    except UnicodeDecodeError as error:
        kind = "UTF-16; save it as UTF-8" if raw[:2] in _UTF16 else "is it a TOML file?"
        raise ConfigError(f"{source}: not UTF-8 at byte {error.start}; {kind}") from None
    except InputError as error:
        raise ConfigError(str(error)) from None


def _parse_toml(text: str) -> dict[str, Any]:
    """Parses TOML.

    Raises:
        ValueError: The text is not TOML, or cannot be a configuration: tables nested a thousand
            levels deep, integers of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"--set {override!r}: write it as section.key=value")
    try:
        parsed = _parse_toml(f"value = {text}")
    except ValueError:
        parsed = {"value": text.strip()}
    if len(parsed) > 1:
        raise ConfigError(f"--set {override!r}: sets more than one value; give --set for each")
    value = parsed["value"]
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"--set {override!r}: {section} is not a section")
    if section == "schedule" and (key, value) != ("cycles", "none"):
        # The last override wins: `cycles` removes the keys of geometric cycles, and vice versa.
        for other in GEOMETRIC_CYCLES if key == "cycles" else ("cycles",):
            if key in ("cycles", *GEOMETRIC_CYCLES):
                table.pop(other, None)
    table[key] = value


def _explain(problem: Any) -> str:
    # After the key, only an index into a list is kept: pydantic also names the types that it tried.
    path, rest = problem["loc"][:2], problem["loc"][2:]
    key = ".".join(str(part) for part in (*path, *(i for i in rest if isinstance(i, int))))
    key = key.replace("\n", "\\n")  # a key from the file must not break the line
    if problem["type"] == "extra_forbidden":
        section: Any = Config
        for part in problem["loc"][:-1]:
            section = section.model_fields[part].annotation
        return f"unknown key {key}{did_you_mean(str(problem['loc'][-1]), section.model_fields)}"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}".removeprefix(": ")
    return f"{key} = {short_repr(problem['input'])}: must be {_allowed_values(problem)}"


def _allowed_values(problem: Any) -> str:
    """Describes the values that are allowed, in plain words instead of pydantic's."""
    kind = problem["type"].removesuffix("_type").removesuffix("_parsing")
    if kind in _ALLOWED_VALUES:
        return _ALLOWED_VALUES[kind]
    message: str = problem["msg"].removeprefix("Input should be ")
    return message


def _may_be_none(key: tuple[Any, ...]) -> bool:
    if len(key) != 2 or key[0] not in Config.model_fields:
        return False
    section: Any = Config.model_fields[key[0]].annotation
    return key[1] in section.model_fields and type(None) in get_args(
        section.model_fields[key[1]].annotation
    )


def _toml_value(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
