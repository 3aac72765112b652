"""`sglm analyze WHAT RUN…`: what synthetic gradients do to a model."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglm.cli import options
from sglm.cli.output import fill
from sglm.cli.signals import termination_raises
from sglm.errors import Stopped
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.analyze.analysis import Analysis, Progress, ReportsProgress

RunsArgument = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="What `sglm train` wrote.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="STORE",
        help="The text; left out: what the first run was trained on.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Gets WHAT.json and WHAT.png; what is there already is continued. [default: the"
        " first run's analysis/]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print WHAT.json instead.")]

analyze = typer.Typer(
    name="analyze",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="What do synthetic gradients do to a model?",
)


SnapshotsOption = Annotated[
    bool,
    typer.Option(
        "--snapshots", help="The models at the ends of cycles instead, which have no synthesizer."
    ),
]
WindowsOption = Annotated[
    int | None,
    options.number(
        "--windows",
        int,
        "How many the long-horizon gradient is the mean of; left out: 5,000, or as many as the"
        " text has.",
        metavar="N",
        show_default=False,
    ),
]
ReachOption = Annotated[
    int,
    options.number(
        "--reach", int, "Steps past a window's end that the long horizon takes in.", metavar="STEPS"
    ),
]


@analyze.command("gradients")
def gradients(
    runs: RunsArgument,
    *,
    data: DataOption = None,
    out: OutOption = None,
    snapshots: SnapshotsOption = False,
    windows: WindowsOption = None,
    reach: ReachOption = 40,
    as_json: JsonOption = False,
) -> None:
    """How good are the gradients that a run follows?

    Their variance; the bias of truncated and of synthetic gradients against a long horizon's; how
    far a synthetic gradient is off, by distance and by part of the state; and which real horizon it
    is worth. After Ilyas et al. 2020.
    """
    with ended_by_interrupts():
        from sglm.analyze.gradients import gradients_analysis

    def make() -> "Analysis":
        return gradients_analysis(
            runs, data=data, snapshots=snapshots, windows=windows, reach=reach
        )

    show(make, runs, out, as_json=as_json)


@analyze.command("landscape")
def landscape(
    runs: RunsArgument,
    *,
    data: DataOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Does a step along a gradient go down the true loss?

    The loss and the predictions along the updates that truncated, long-horizon and synthetic
    gradients ask for, and a random direction: on the windows of the gradient, and on other text.
    After Ilyas et al. 2020.
    """
    with ended_by_interrupts():
        from sglm.analyze.landscape import landscape_analysis

    show(lambda: landscape_analysis(runs, data=data), runs, out, as_json=as_json)


def show(
    make: "Callable[[], Analysis]", runs: list[Path], out: Path | None, *, as_json: bool
) -> None:
    """Says what an analysis costs, carries it out and prints what it found.

    Args:
        make: the analysis, where its arguments fit.
        runs, out, as_json: as they were given.
    """
    from sglm.analyze.analysis import carry_out, check_memory, waiting_seconds, without_nan
    from sglm.storage.picture import WITHOUT_MATPLOTLIB, can_draw
    from sglm.train.log.console import duration

    analysis = make()
    folder = out or runs[0] / "analysis"
    check_memory(analysis)
    parts, seconds = len(analysis.parts()), waiting_seconds(analysis, folder)
    told = f"{analysis.what}: {parts} parts, about {duration(seconds)}, to {folder}"
    typer.echo(told, err=True)
    if not can_draw():
        typer.echo(f"{analysis.what}.png {WITHOUT_MATPLOTLIB}", err=True)
    stopped = "stopped; the same command continues with the next part"
    with termination_raises(stopped):
        try:
            finding = carry_out(analysis, folder, report=_progress())
        except KeyboardInterrupt:
            raise Stopped(stopped, signal_number=signal.SIGINT) from None
    if as_json:
        typer.echo(json.dumps(without_nan(finding.as_json()), ensure_ascii=False))
        return
    for line in aligned(finding.rows()):
        typer.echo(line)
    typer.echo(fill(finding.reading()))


def _progress() -> "ReportsProgress":
    """A line that is overwritten on a terminal; elsewhere a line for each part."""
    from sglm.train.log.console import duration, is_terminal, print_while_open

    console, on_terminal = sys.stderr, is_terminal(sys.stderr)
    before, after = ("\r\x1b[2K", "") if on_terminal else ("", "\n")

    def report(progress: "Progress") -> None:
        text = ""
        if progress.part is not None:
            left = duration(progress.seconds_left)
            text = f"{progress.done + 1}/{progress.parts}  {left} left  {progress.part}"
        elif not on_terminal:
            return
        print_while_open(f"{before}{text[:79] if on_terminal else text}{after}", console)

    return report


def aligned(rows: list[list[str]]) -> list[str]:
    """The lines of a table: its first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
