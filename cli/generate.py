"""`sglm generate`: continues a text."""

import shlex
from typing import Annotated

import typer

from sglm.cli import options
from sglm.runtime.process import ended_by_interrupts


def generate(
    context: typer.Context,
    *,
    run: options.RunArgument,
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="The beginning of the text.")] = "",
    tokens: Annotated[
        int, options.number("--tokens", int, "Number of tokens to add, at most.")
    ] = 50,
    temperature: Annotated[
        float,
        options.number(
            "--temperature", float, "Below 1, likely tokens are preferred; 0 takes the likeliest."
        ),
    ] = 0.8,
    top_p: Annotated[
        float | None,
        options.number(
            "--top-p",
            float,
            "Draw only from the likeliest tokens that together have this probability; left out:"
            " from all tokens.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        options.number(
            "--seed", int, "The same seed gives the same text; left out: another one each time."
        ),
    ] = None,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Continue a text. Prints the prompt and the tokens that the model adds."""
    import json

    with ended_by_interrupts():
        from sglm.errors import InputError
        from sglm.loading import load

    if words := context.args:
        raise InputError(
            f"{words[0]!r} is one argument too many; give the beginning of the text as --prompt"
            f" {shlex.quote(' '.join(words))}"
        )
    lm = load(run, device.value)
    text = lm.generate(prompt, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed)
    if as_json:
        typer.echo(json.dumps({"model": lm.name, "prompt": prompt, "text": text, "seed": seed}))
    else:
        typer.echo(text, color=True)
