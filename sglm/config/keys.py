"""Every configuration key: its allowed values, default and description, taken from `schema`."""

import ast
import inspect
import json
import textwrap
from dataclasses import dataclass
from typing import Any

from sglm.config.schema import Config

_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "from",
    "exclusiveMaximum": "below",
    "maximum": "to",
}
# A larger maximum only guards against overflow, and is not shown to users.
_ANY = 1e6
_KINDS = {
    "boolean": "true, false",
    "integer": "integer",
    "number": "number",
    "null": "none",
    "array": "list of numbers",
}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a configuration.

    Attributes:
        name: Name of the key, as `section.key`.
        values: Description of the allowed values.
        default: Value in a configuration that does not set the key; None is off.
        sentence: Description of what the key does.
    """

    name: str
    values: str
    default: Any
    sentence: str

    @property
    def default_toml(self) -> str:
        """The default as it is written in a file; after `--set section.key=` its quotes may be
        left out."""
        return json.dumps("none" if self.default is None else self.default)


def sections() -> dict[str, str]:
    """Returns the description of every section, by name."""
    return {name: _sentence(_section(name).__doc__ or "") for name in Config.model_fields}


def keys(section: str) -> list[Key]:
    """Returns all keys of a section, in the order of `schema`."""
    model = _section(section)
    sentences, forms = _sentences(model), model.model_json_schema()["properties"]
    return [
        Key(
            name=f"{section}.{key}",
            values=_values(forms[key]),
            default=field.default,
            sentence=sentences[key],
        )
        for key, field in model.model_fields.items()
    ]


def _section(name: str) -> Any:
    return Config.model_fields[name].annotation


def _sentences(model: type) -> dict[str, str]:
    """Returns the docstring below each field, by the name of the field."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): _sentence(ast.literal_eval(below.value))
        for field, below in zip(definition.body, definition.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr)
    }


def _sentence(text: str) -> str:
    return " ".join(text.split())


def _values(form: dict[str, Any]) -> str:
    """Describes the values that a field's JSON schema allows."""
    if "anyOf" in form:
        return " or ".join(map(_values, form["anyOf"]))
    if "enum" in form or "const" in form:
        return ", ".join(map(str, form.get("enum", [form.get("const")])))
    bounds = [
        f"{word} {form[key]:,g}" for key, word in _BOUNDS.items() if form.get(key, _ANY) < _ANY
    ]
    return " ".join([_KINDS[form["type"]], *bounds])
