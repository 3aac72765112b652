"""`sglm config`: prints every configuration key, or a configuration with all its values."""

import json
from typing import Annotated

import typer

from sglm.cli import options
from sglm.cli.output import fill

ConfigArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CONFIG",
        help="A TOML file or the name of a recipe; it is printed with every value.",
        show_default=False,
    ),
]


def config(
    *,
    config: ConfigArgument = None,
    set_: options.SetOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """List every configuration key: its values, default and effect.

    With CONFIG: print that configuration, with the defaults of the keys that it leaves out.
    """
    from sglm.config import config_to_toml, load_config, plain_values
    from sglm.errors import InputError

    if config is not None:
        settings = load_config(config, set_ or [])
        typer.echo(json.dumps(plain_values(settings)) if as_json else config_to_toml(settings))
        return
    if set_:
        raise InputError("--set changes a configuration; name it: sglm config tiny --set …")
    if as_json:
        typer.echo(json.dumps(_all_keys()))
    else:
        _print_keys()


def _all_keys() -> dict[str, dict[str, object]]:
    from sglm.config.keys import keys, sections

    return {
        key.name: {"values": key.values, "default": key.default, "sentence": key.sentence}
        for section in sections()
        for key in keys(section)
    }


def _print_keys() -> None:
    from sglm.config.keys import keys, sections

    for section, sentence in sections().items():
        typer.echo(fill(sentence, indent="    ", first=f"[{section}] "))
        for key in keys(section):
            name = key.name.partition(".")[2]
            typer.echo(f"  {name} = {key.default_toml}   ({key.values})")
            typer.echo(fill(key.sentence, indent=" " * 6))
        typer.echo()
