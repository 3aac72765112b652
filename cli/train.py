"""`sglm train`: trains a run from a configuration and a token store."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sglm.cli import next_step, options
from sglm.cli.output import fill
from sglm.cli.signals import StopRequest, stop_request
from sglm.scoring.metrics import format_perplexity

if TYPE_CHECKING:
    from sglm.config import Config
    from sglm.optim.precision import Precision
    from sglm.text.store import TokenStore
    from sglm.train.loop import Outcome
    from sglm.train.starting_point import StartingPoint


def train(
    *,
    config: options.ConfigArgument,
    data: Annotated[Path, typer.Option(metavar="STORE", help="The store to train on.")],
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="Folder for the run; a run there is continued.")
    ],
    set_: options.SetOption = None,
    seed: Annotated[
        int | None, options.number("--seed", int, "Short for --set train.seed=N.")
    ] = None,
    device: options.DeviceOption = options.Device.AUTO,
    precision: options.PrecisionOption = options.PrecisionName.AUTO,
    deterministic: Annotated[
        bool,
        options.deterministic_option(
            "Give the same result bit for bit every time on CUDA, more slowly; a CPU always does."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue a run that is in --out.")
    ] = True,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="RUN", help="Start from the weights of a trained run or model."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Train a language model on a store.

    The same command continues a training that was interrupted. Ctrl-C saves a checkpoint and stops.
    """
    # Before the imports below, which take seconds: a signal may arrive during them.
    with stop_request() as request:
        from sglm.config import load_config
        from sglm.text.store import TokenStore
        from sglm.train.starting_point import StartingPoint

        settings = load_config(config, _overrides(set_, seed))
        store = TokenStore.open(data)
        start = None if start_from is None else StartingPoint.open(start_from)
        chosen = _precision(device, precision, deterministic)
        if dry_run:
            _print_plan(settings, store, chosen, start=start, request=request, as_json=as_json)
            return
        outcome = _train(
            settings,
            store,
            out,
            precision=chosen,
            resume=resume,
            start=start,
            stop_signal=request.signal_number,
        )
    if outcome is not None:
        held_out = len(store.splits) > 1
        typer.echo(_as_json(outcome, out) if as_json else summary(outcome, out, held_out=held_out))


def _overrides(sets: list[str] | None, seed: int | None) -> list[str]:
    return [*(sets or []), *([] if seed is None else [f"train.seed={seed}"])]


def _precision(
    device: options.Device, precision: options.PrecisionName, deterministic: bool
) -> "Precision":
    """Returns the precision to compute in, on the device `Precision.device`."""
    from sglm.optim.precision import make_precision
    from sglm.runtime.device import claim_gpu, make_deterministic, pick_device

    chosen_device = pick_device(device.value)
    if deterministic:
        make_deterministic(chosen_device)
    return make_precision(precision.value, claim_gpu(chosen_device))


def _train(
    config: "Config",
    store: "TokenStore",
    out: Path,
    *,
    precision: "Precision",
    resume: bool,
    start: "StartingPoint | None",
    stop_signal: Callable[[], int | None],
) -> "Outcome | None":
    """Trains, alone or with the other processes that torchrun started; returns None if another of
    them prints the outcome."""
    from sglm.runtime.ranks import joined
    from sglm.train.loop import train as run_training

    with joined(precision.device) as ranks:
        outcome = run_training(
            config,
            store,
            out,
            precision=precision,
            console=sys.stderr,
            resume=resume,
            start=start,
            stop_signal=stop_signal,
            ranks=ranks,
        )
    return outcome if ranks.writes else None


def _print_plan(
    config: "Config",
    store: "TokenStore",
    precision: "Precision",
    *,
    start: "StartingPoint | None",
    request: StopRequest,
    as_json: bool,
) -> None:
    """Prints the plan of a training, without training; the memory is that of this process."""
    from sglm.runtime.memory import available_bytes
    from sglm.runtime.ranks import expected_ranks
    from sglm.runtime.terminal import duration
    from sglm.train.dry_run.plan import plan_run

    if start is not None:
        config = start.matching_config(config, store)
    ranks = expected_ranks()
    if not ranks.writes:
        return
    plan = plan_run(config, store, precision, ranks=ranks)
    if not as_json:
        typer.echo(plan.describe())
    seconds, available = None, available_bytes()
    if ranks.count == 1 and (available is None or plan.memory.peak < available):
        seconds = _seconds(config, store, precision)
    if as_json:
        typer.echo(json.dumps({**plan.as_json(), "seconds": seconds}))
    elif seconds is not None:
        typer.echo(
            f"\ntime     about {duration(seconds)}, estimated from a few steps on this machine"
        )
    request.raise_if_received()


def _seconds(config: "Config", store: "TokenStore", precision: "Precision") -> float | None:
    """Estimates the time of a training from a few of its steps, in another process; None if they
    fail."""
    from sglm.compare.process import Execution
    from sglm.compare.timing import seconds_of_runs

    typer.echo("timing a few steps", err=True)
    timed = seconds_of_runs({"run": config}, store, Execution(precision=precision))
    return None if timed is None else timed["run"]


def _as_json(outcome: "Outcome", out: Path) -> str:
    from sglm.scoring.metrics import finite_or_none

    best = finite_or_none(outcome.best_token_ppl)
    return json.dumps({"run": str(out), **vars(outcome), "best_token_ppl": best})


def summary(outcome: "Outcome", out: Path, *, held_out: bool = True) -> str:
    """Describes in a few lines how a training ended.

    Args:
        outcome: The outcome of the training.
        out: The run's folder.
        held_out: Whether there is a text to evaluate on.
    """
    best = ""
    if outcome.best_token_ppl is not None:
        best = f"; best validation perplexity {format_perplexity(outcome.best_token_ppl)}"
    ended = "was finished already" if outcome.already_finished else "finished"
    lines = [f"{out}: {ended}: {outcome.steps:,} steps in {outcome.seconds:,.0f} s{best}"]
    if outcome.skipped_steps:
        lines.append(
            f"{outcome.skipped_steps:,} steps changed nothing: loss or gradient was not finite"
        )
    if outcome.diagnosis is not None:
        lines.append(fill(outcome.diagnosis))
    lines.append(f"next: {next_step.command('eval' if held_out else 'generate', out)}")
    lines.append(f"curves: {next_step.tensorboard(out)}")
    return "\n".join(lines)
