"""`sglm recipes`: lists the shipped configurations and the results to expect of them."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from sglm.cli.output import fill

NOT_MEASURED = "–"
EXPLANATION = (
    "Memory: of the process on a CPU, predicted. Time: on two CPU cores. Perplexity: per token on"
    " validation text, from the best to the worst of three seeds (a single number: of one run)."
    f" {NOT_MEASURED}: not measured. The numbers are for the text that --json names; `sglm train"
    " RECIPE --data STORE --out RUN --dry-run` predicts memory and time for yours."
)


def alike(numbers: Sequence[float]) -> list[str]:
    """Formats numbers with equally many decimals, as many as the longest one needs."""
    decimals = max((len(f"{each:g}".partition(".")[2]) for each in numbers), default=0)
    return [f"{each:.{decimals}f}" for each in numbers]


def recipes(
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, with more details.")
    ] = False,
) -> None:
    """List the recipes, with time, memory and expected perplexity.

    A recipe is a configuration that comes with sglm. `sglm train` and `sglm compare` take its name;
    `sglm config RECIPE` prints it.
    """
    from sglm.config.recipes import recipes as shipped_recipes

    abouts = shipped_recipes()
    if as_json:
        typer.echo(json.dumps({name: about.model_dump() for name, about in abouts.items()}))
        return
    width = max(map(len, abouts))
    typer.echo(f"{'recipe':<{width}}  parameters     memory     time      perplexity")
    for name, about in sorted(abouts.items(), key=lambda item: item[1].parameters):
        time = NOT_MEASURED if about.minutes is None else f"{about.minutes:g} min"
        bounds = alike(about.perplexity or ())
        perplexity = " to ".join(dict.fromkeys(bounds)) or NOT_MEASURED
        typer.echo(
            f"{name:<{width}}  {about.parameters / 1e6:>8.1f} M"
            f"  {about.memory_mib:>5,} MiB  {time:>7}  {perplexity:>14}"
        )
        origin = "" if about.minutes is None else f" {about.measured}"
        typer.echo(fill(about.purpose + origin, indent="    "))
    typer.echo()
    typer.echo(fill(EXPLANATION))
