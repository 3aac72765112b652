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
        name: `section.key`.
        values: what it may be, in words.
        default: its value in a configuration that does not set it; None is off.
        sentence: what it does.
    """

    name: str
    values: str
    default: Any
    sentence: str

    @property
    def default_toml(self) -> str:
        """The default as one would write it in a file; after `--set section.key=` quotes may be
        left out."""
        return json.dumps("none" if self.default is None else self.default)


def sections() -> dict[str, str]:
    """The sentence of every section."""
    return {name: _sentence(_section(name).__doc__ or "") for name in Config.model_fields}


def keys(section: str) -> list[Key]:
    """All keys of a section, in the order of `schema`."""
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
    """The string below each field."""
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
    """What a field's JSON schema allows, in words."""
    if "anyOf" in form:
        return " or ".join(map(_values, form["anyOf"]))
    if "enum" in form or "const" in form:
        return ", ".join(map(str, form.get("enum", [form.get("const")])))
    bounds = [
        f"{word} {form[key]:,g}" for key, word in _BOUNDS.items() if form.get(key, _ANY) < _ANY
    ]
    return " ".join([_KINDS[form["type"]], *bounds])
