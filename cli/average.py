"""`sglm average`: averages the models at the ends of a run's cycles into one model."""

from pathlib import Path
from typing import Annotated

import typer

from sglm.cli import next_step, options
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts


def average(
    *,
    run: options.WholeRunArgument,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The model folder to write.", show_default=False),
    ],
    last: options.LastOption = None,
) -> None:
    """Average the weights of a run's snapshots into one model.

    A snapshot is the model at the end of a cycle. The average is as fast as one model; `sglm eval
    DIR --data STORE --split valid` shows whether it is better.
    """
    with ended_by_interrupts():
        from sglm.snapshots import average_snapshots, snapshot_folders
        from sglm.train.record import training_store

    folders = snapshot_folders(run, last)
    model = average_snapshots(run, out, last=last)
    typer.echo(f"{model}: the mean of {', '.join(folder.name for folder in folders)}")
    try:
        data: Path | str = training_store(run).folder
    except InputError:
        data = "STORE"
    next_command = next_step.command("eval", model, "--data", data, "--split", "valid")
    typer.echo(f"next: {next_command}")
