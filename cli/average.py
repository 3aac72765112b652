"""`sglm average`: one model from the models at the ends of a run's cycles."""

from pathlib import Path
from typing import Annotated

import typer

from sglm.cli import next_step, options
from sglm.runtime.process import ended_by_interrupts


def average(
    *,
    run: options.WholeRunArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The model folder to be written.", show_default=False),
    ],
    last: options.LastOption = None,
) -> None:
    """Average the weights of a run's snapshots into one model.

    A snapshot is the model at the end of a cycle. The average is as fast as one model; whether it
    is better, `sglm eval DIR --data STORE --split valid` tells.
    """
    with ended_by_interrupts():
        from sglm.snapshots import average_snapshots, snapshot_folders

    folders = snapshot_folders(run, last)
    model = average_snapshots(run, out, last=last)
    typer.echo(f"{model}: the mean of {', '.join(folder.name for folder in folders)}")
    typer.echo(f"next: {next_step.command('eval', model)} --data STORE --split valid", err=True)
