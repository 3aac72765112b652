"""`sglm analyze WHAT RUN…`: analyses of what synthetic gradients do to a model."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    list[Path], typer.Argument(metavar="RUN...", help="Folders that `sglm train` wrote.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="STORE",
        help="The store to read; left out: the one that the first run was trained on.",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder for WHAT.json and WHAT.png (WHAT: the analysis); an analysis that is already"
        " there is continued. [default: the first run's analysis/]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print WHAT.json instead of a table.")]

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
        "--snapshots",
        help="Analyse the models at the ends of cycles instead, which have no synthesizer.",
    ),
]
WindowsOption = Annotated[
    int | None,
    options.number(
        "--windows",
        int,
        "Number of windows over which the long-horizon gradient is averaged; left out: 5,000, or as"
        " many as the text has.",
        metavar="N",
        show_default=False,
    ),
]
ReachOption = Annotated[
    int,
    options.number(
        "--reach", int, "Steps past a window's end that the long horizon covers.", metavar="STEPS"
    ),
]
TokensOption = Annotated[
    int,
    options.number(
        "--tokens", int, "Approximate number of training tokens; time grows with it.", metavar="N"
    ),
]


@analyze.command("gradients")
def gradients(
    *,
    runs: RunsArgument,
    data: DataOption = None,
    out: OutOption = None,
    snapshots: SnapshotsOption = False,
    windows: WindowsOption = None,
    reach: ReachOption = 40,
    as_json: JsonOption = False,
) -> None:
    """How good are the gradients that a run follows?

    Measures their variance; the bias of truncated and of synthetic gradients against those of a
    long horizon; the error of a synthetic gradient, by distance and by part of the state; and the
    real horizon that it is worth. After Ilyas et al. 2020. The training text must be long enough
    for 16 · train.batch lanes, each of at least 50 steps, two windows and --reach.
    """
    with ended_by_interrupts():
        from sglm.analyze.gradients.analysis import gradients_analysis

    def make() -> "Analysis":
        return gradients_analysis(
            runs, data=data, snapshots=snapshots, windows=windows, reach=reach
        )

    show(make, runs, out, as_json=as_json)


@analyze.command("landscape")
def landscape(
    *,
    runs: RunsArgument,
    data: DataOption = None,
    out: OutOption = None,
    snapshots: SnapshotsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Does a step along a gradient lower the true loss?

    Measures the loss and the predictions along the updates that truncated, long-horizon and
    synthetic gradients ask for, and along a random direction: on the windows of the gradient, and
    on other text. After Ilyas et al. 2020.
    """
    with ended_by_interrupts():
        from sglm.analyze.landscape.analysis import landscape_analysis

    def make() -> "Analysis":
        return landscape_analysis(runs, data=data, snapshots=snapshots)

    show(make, runs, out, as_json=as_json)


@analyze.command("representations")
def representations(
    *,
    runs: RunsArgument,
    data: DataOption = None,
    out: OutOption = None,
    snapshots: SnapshotsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Do runs compute the same function with different layers?

    Compares runs of two or more modes; two seeds of each mode are the yardstick. Measures how far
    apart their predictions are (KL, in nats) and their layers (linear CKA; 1: the same up to a
    rotation); what linear probes find in the layers (the next token's frequency class, the place in
    the line, open brackets); whether the field that a synthesizer predicts is a gradient (curl: the
    share that is not), and how well the loss that it implies agrees with the true one (Czarnecki et
    al. 2017).
    """
    with ended_by_interrupts():
        from sglm.analyze.representations.analysis import prepare_representations

    def make() -> "Analysis":
        return prepare_representations(runs, data=data, snapshots=snapshots)

    show(make, runs, out, as_json=as_json)


@analyze.command("curvature")
def curvature(
    *,
    runs: RunsArgument,
    data: DataOption = None,
    out: OutOption = None,
    snapshots: SnapshotsOption = False,
    tokens: TokensOption = 1000,
    as_json: JsonOption = False,
) -> None:
    """What does the curvature of the loss look like?

    Computes the Hessian and the Gauss-Newton matrix GN of the loss in each weight matrix: top
    eigenvalues, rank of the eigenvectors, what runs have in common, Kronecker factors. After Wu et
    al. 2020. The loss is that of short windows of the training text; nothing is differentiated past
    a window's start.

    The table shows means over the runs. λ1: the largest eigenvalue of GN. The other columns are
    overlaps and shares from 0 to 1, with + where they agree with the paper (0.5 or more), otherwise
    with -. H~GN: overlap of GN's ten top eigenvectors with the Hessian's. exp, red: with those of
    the Kronecker product (expand, reduce). seed=, seed≠: between runs with the same seed, and with
    different seeds. rank1: share of an eigenvector that is an outer product. mean: share of the
    mean in the matrix's inputs. along: share of an eigenvector along that mean. With --snapshots,
    a row's name ends in the cycle.
    """
    with ended_by_interrupts():
        from sglm.analyze.curvature.analysis import CurvatureAnalysis

    def make() -> "Analysis":
        return CurvatureAnalysis(runs, data=data, snapshots=snapshots, tokens=tokens)

    show(make, runs, out, as_json=as_json)


@analyze.command("norms")
def norms(
    *,
    runs: RunsArgument,
    data: DataOption = None,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """What does weight decay do to training?

    Reads what training logged: the length of weights and updates, the effective learning rate, the
    share of an L2 term in Adam's first moment. Measures the sharpness of each snapshot, in units of
    its weights. After Bjorck, Weinberger & Gomes 2021.

    The columns of the table. ‖w‖ first, last: the length of all matrices together at the first and
    the last validation. rate: the mean length of an update over that length, in the second half of
    the run. L2: the share of the L2 term. sharp: the sharpness of the last snapshot. ppl: the
    lowest validation perplexity.
    """
    with ended_by_interrupts():
        from sglm.analyze.norms.analysis import norms_analysis

    show(lambda: norms_analysis(runs, data=data), runs, out, as_json=as_json)


def show(
    make: "Callable[[], Analysis]", runs: list[Path], out: Path | None, *, as_json: bool
) -> None:
    """Prints the time that an analysis will take, carries it out and prints its finding.

    Args:
        make: A function that returns the analysis and may raise `InputError`.
        runs, out, as_json: The arguments of the command.
    """
    from sglm.analyze.analysis import carry_out, check_memory, remaining_seconds, without_nan
    from sglm.runtime.terminal import duration
    from sglm.storage.picture import WITHOUT_MATPLOTLIB, can_draw

    analysis = make()
    folder = out or runs[0] / "analysis"
    check_memory(analysis)
    parts = analysis.parts()
    seconds, several = remaining_seconds(analysis, parts, folder), "" if len(parts) == 1 else "s"
    estimate = (
        f"{analysis.what}: {len(parts)} part{several}, about {duration(seconds)}, to {folder}"
    )
    typer.echo(estimate, err=True)
    if not can_draw():
        typer.echo(f"{analysis.what}.png {WITHOUT_MATPLOTLIB}", err=True)
    stopped = "stopped; the same command continues with the next part"
    with termination_raises(stopped):
        try:
            with _progress() as report:
                finding = carry_out(analysis, folder, parts=parts, report=report)
        except KeyboardInterrupt:
            raise Stopped(stopped, signal_number=signal.SIGINT) from None
    if as_json:
        typer.echo(json.dumps(without_nan(finding.as_json()), ensure_ascii=False))
        return
    for line in aligned(finding.rows()):
        typer.echo(line)
    typer.echo(fill(finding.summary()))


@contextmanager
def _progress() -> "Iterator[ReportsProgress]":
    """Shows progress: on a terminal one line, overwritten and in the end cleared, even after an
    error; elsewhere a line for each part."""
    from sglm.runtime.terminal import OverwrittenLine, duration

    line = OverwrittenLine(sys.stderr)

    def report(progress: "Progress") -> None:
        if progress.part is None:
            return
        left = duration(progress.seconds_left)
        line.show(f"{progress.done + 1}/{progress.parts}  {left} left  {progress.part}")

    try:
        yield report
    finally:
        line.clear()


def aligned(rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table: the first column aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
