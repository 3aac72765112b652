"""`sglm train`: a configuration and a token store to a run."""

import json
import os
import signal
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sglm.train.loop import Outcome


class Device(StrEnum):
    """Where to compute."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PrecisionName(StrEnum):
    """The type of the matrix products."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


PRECISION_HELP = "auto: bf16 or fp16 on CUDA, fp32 on a CPU. With AMX a CPU is faster in bf16."


def train(
    config: Annotated[
        str, typer.Argument(help="A TOML file, or the name of a shipped recipe: tiny, ptb-small, …")
    ],
    data: Annotated[Path, typer.Option(help="Token store made by `sglm prep`.")],
    out: Annotated[Path, typer.Option(help="Run folder; an interrupted run there is continued.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; repeatable."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set train.seed=…")] = None,
    device: Annotated[Device, typer.Option(help="auto: cuda where there is one.")] = Device.AUTO,
    precision: Annotated[PrecisionName, typer.Option(help=PRECISION_HELP)] = PrecisionName.AUTO,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="The same bits every time on CUDA, slower; a CPU gives them anyway.",
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Continue a run that is in --out.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Train a language model; run again after an interruption, it continues."""
    # From here on, for what is imported below takes seconds.
    with StopRequest() as asked:
        from sglm.config import load_config
        from sglm.optim.precision import make_precision
        from sglm.runtime.device import make_deterministic, own_gpu, pick_device
        from sglm.runtime.ranks import expected_ranks, joined
        from sglm.text.store import TokenStore

        overrides = [*(set_ or []), *([] if seed is None else [f"train.seed={seed}"])]
        settings = load_config(config, overrides)
        store = TokenStore.open(data)
        chosen_device = pick_device(device.value)
        if deterministic:
            make_deterministic(chosen_device)
        chosen_device = own_gpu(chosen_device)
        chosen_precision = make_precision(precision.value, chosen_device)

        if dry_run:
            from sglm.train.dry_run.plan import plan_run

            expected = expected_ranks()
            if expected.writes:
                plan = plan_run(settings, store, chosen_precision, ranks=expected)
                typer.echo(json.dumps(plan.as_json()) if as_json else plan.describe())
            return

        from sglm.train.loop import train as run_training

        with joined(chosen_device) as ranks:
            if ranks.writes:
                where = f"{chosen_device} × {ranks.count}" if ranks.count > 1 else chosen_device
                typer.echo(f"training on {where} in {chosen_precision.name} → {out}", err=True)
            outcome = run_training(
                settings,
                store,
                out,
                precision=chosen_precision,
                console=sys.stderr,
                resume=resume,
                stop_signal=asked.signal_number,
                ranks=ranks,
            )
    if not ranks.writes:
        return
    if as_json:
        typer.echo(json.dumps({"run": str(out), **vars(outcome)}))
    else:
        typer.echo(told(outcome, out, data))


def told(outcome: "Outcome", out: Path, data: Path) -> str:
    """How a training ended, in lines for people."""
    best = (
        ""
        if outcome.best_token_ppl is None
        else (f"; best validation perplexity {outcome.best_token_ppl:.2f}")
    )
    done = "was finished already" if outcome.already_finished else "finished"
    lines = [f"{out}: {done}: {outcome.steps:,} steps in {outcome.seconds:,.0f} s{best}"]
    if outcome.skipped_steps:
        lines.append(
            f"{outcome.skipped_steps:,} steps changed nothing: loss or gradient was not finite"
        )
    if outcome.diagnosis is not None:
        lines.append(outcome.diagnosis)
    lines.append(f"next: sglm eval {out} --data {data}   |   tensorboard --logdir {out}")
    return "\n".join(lines)


class StopRequest:
    """Remembers SIGINT or SIGTERM until the training asks; a second one ends at once.

    Within the `with` block only; afterwards signals do again what they did before.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopRequest":
        numbers = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)
        # Not print: it may be amidst a print just now. Nor need anybody be listening.
        with suppress(OSError):
            os.write(2, b"\nstopping after this step; once more to stop without saving\n")

    def signal_number(self) -> int | None:
        """The signal that asked to stop, if one did."""
        return self.received
