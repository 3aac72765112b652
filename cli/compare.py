"""`sglm compare`: trains variants × seeds on one corpus, for a table, a picture and numbers."""

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sglm.cli import options
from sglm.cli.signals import stop_request
from sglm.compare.grid import Grid
from sglm.compare.variants import DEFAULT_HORIZON_WINDOWS, DEFAULT_VARIANTS, VARIANTS
from sglm.errors import ConfigError, InputError, did_you_mean
from sglm.runtime.process import ended_by_interrupts
from sglm.storage.untrusted import is_count

ALL_DEFAULT_VARIANTS = ",".join(DEFAULT_VARIANTS)
# \b: Typer keeps the line breaks of such a paragraph.
VARIANTS_HELP = "\b\nVariants:\n" + "\n".join(
    textwrap.fill(variant.sentence, 76, initial_indent=f"{name:<20}", subsequent_indent=" " * 20)
    for name, variant in VARIANTS.items()
)

DataOption = Annotated[
    Path, typer.Option(metavar="STORE", help="The store to train on, with a validation split.")
]
OutOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Folder for the comparison; one that is there is continued."),
]
SeedsOption = Annotated[
    str, typer.Option(metavar="LIST", help="Seeds; each variant is trained once with each.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the plan, with an estimate of its time, and stop.")
]
VariantsOption = Annotated[
    str, typer.Option(metavar="LIST", help="The variants to compare, from the list below.")
]
HorizonOption = Annotated[
    int | None,
    options.number(
        "--horizon",
        int,
        "Long horizon (bptt-long, fresh, swapped), rounded up to whole windows; left out:"
        f" {DEFAULT_HORIZON_WINDOWS} windows.",
        metavar="STEPS",
        show_default=False,
    ),
]
DeterministicOption = Annotated[
    bool,
    options.deterministic_option(
        "Give the same result bit for bit every time on CUDA, more slowly; a CPU always does."
    ),
]
ShardOption = Annotated[
    str,
    typer.Option(
        metavar="I/N",
        help="Train only the I-th of N parts of the grid, to spread it over processes or machines."
        " To merge, copy their DIR/runs together and call again without --shard.",
    ),
]


def compare(
    *,
    config: options.ConfigArgument,
    data: DataOption,
    out: OutOption,
    variants: VariantsOption = ALL_DEFAULT_VARIANTS,
    seeds: SeedsOption = "0,1,2",
    set_: options.SetOption = None,
    horizon: HorizonOption = None,
    device: options.DeviceOption = options.Device.AUTO,
    precision: options.PrecisionOption = options.PrecisionName.AUTO,
    deterministic: DeterministicOption = False,
    shard: ShardOption = "1/1",
    dry_run: DryRunOption = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print results.json, not a table.")
    ] = False,
) -> None:
    """Compare ways of training on your corpus: variants × seeds.

    All runs make the same number of updates on the same amount of data (artbp: on average). Prints
    the validation perplexity at their end: mean, spread over seeds, and difference from bptt,
    paired by seed. DIR gets results.json, table.md, curves.png and the runs. The same command
    continues a comparison that was interrupted.
    """
    from sglm.config import load_config

    grid = parse_grid(variants, seeds, shard)
    refuse_own_options(set_ or [])
    settings = load_config(config, set_ or [])

    with ended_by_interrupts():
        from sglm.compare import comparison
        from sglm.compare.plan import plan_comparison
        from sglm.compare.process import Execution
        from sglm.optim.precision import make_precision
        from sglm.runtime.device import pick_device
        from sglm.text.store import TokenStore

    store = TokenStore.open(data)
    chosen = make_precision(precision.value, pick_device(device.value))
    with stop_request() as request:
        execution = Execution(
            precision=chosen, deterministic=deterministic, stop_signal=request.signal_number
        )
        shared = comparison.prepare(settings, store, out, variants=grid.variants, horizon=horizon)
        plan = plan_comparison(shared, grid, execution, console=sys.stderr)
        if dry_run:
            typer.echo(json.dumps(plan.as_json()) if as_json else plan.describe())
            return
        if plan.waiting:
            typer.echo(plan.describe(), err=True)
            execution = replace(execution, expected_seconds=plan.seconds)
        results = comparison.compare(shared, grid=grid, execution=execution, console=sys.stderr)
    _print(results, as_json)


def _print(results: dict[str, Any], as_json: bool) -> None:
    from sglm.compare.table import table, terminal_table

    if as_json:
        typer.echo(json.dumps(results))
    else:
        typer.echo(terminal_table(results) if sys.stdout.isatty() else table(results))


def refuse_own_options(overrides: list[str]) -> None:
    """Refuses configuration keys that are options of a comparison.

    Raises:
        ConfigError: `train.horizon` or `train.seed` is set.
    """
    if any(override.startswith("train.horizon") for override in overrides):
        raise ConfigError(
            "--set train.horizon: the long horizon is a variant of its own here;"
            " give --variants …,bptt-long --horizon STEPS"
        )
    if any(override.startswith("train.seed") for override in overrides):
        raise ConfigError("--set train.seed: give --seeds instead")


def parse_grid(variants: str, seeds: str, shard: str) -> Grid:
    """Parses the options that define the grid.

    Raises:
        InputError: One of them is invalid.
    """
    return Grid(
        variants=tuple(parse_variants(variants)),
        seeds=tuple(parse_seeds(seeds)),
        shard=parse_shard(shard),
    )


def parse_variants(text: str) -> list[str]:
    """Parses the names in `--variants`.

    Raises:
        InputError: A name is unknown or given twice.
    """
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"--variants: unknown {name!r}{did_you_mean(name, VARIANTS)}")
    _refuse_repeated("--variants", names)
    return names


def parse_seeds(text: str) -> list[int]:
    """Parses the numbers in `--seeds`.

    Raises:
        InputError: A seed is not a whole number from 0 to 2⁶³ - 1, or is given twice.
    """
    seeds = []
    for part in text.split(","):
        digits = part.strip()
        if not (
            digits.isascii() and digits.isdigit() and len(digits) < 20 and is_count(int(digits))
        ):
            raise InputError(
                f"--seeds: {digits!r} is not a seed; give whole numbers from 0 on, such as 0,1,2"
            )
        seeds.append(int(digits))
    _refuse_repeated("--seeds", seeds)
    return seeds


def parse_shard(text: str) -> tuple[int, int]:
    """Parses `--shard`.

    Raises:
        InputError: It is not I/N with I from 1 to N.
    """
    part, _, parts = text.partition("/")
    known = part.isdecimal() and parts.isdecimal() and len(part + parts) < 20
    if not (known and 1 <= int(part) <= int(parts)):
        raise InputError(f"--shard {text!r}: write it as I/N with I from 1 to N: 1/3, 2/3, 3/3")
    return int(part), int(parts)


def _refuse_repeated(option: str, values: list[str] | list[int]) -> None:
    for value in values:
        if values.count(value) > 1:  # type: ignore[arg-type]
            raise InputError(f"{option}: {value} is given twice; give it once")
