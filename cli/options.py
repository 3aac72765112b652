"""Arguments and options that several commands share. Light to import: every --help reads it."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo


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


ConfigArgument = Annotated[
    str, typer.Argument(help="A TOML file, or the name of a shipped recipe: tiny, ptb-small, …")
]
RunArgument = Annotated[Path, typer.Argument(help="A run, or a model folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; repeatable."),
]
DeviceOption = Annotated[Device, typer.Option(help="auto: cuda where there is one.")]
PrecisionOption = Annotated[
    PrecisionName,
    typer.Option(
        help="auto: bf16 or fp16 on CUDA, fp32 on a CPU. With AMX a CPU is faster in bf16."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def deterministic_option(help_text: str) -> OptionInfo:
    """`--deterministic`, which each command explains in its own words."""
    option: OptionInfo = typer.Option("--deterministic/--no-deterministic", help=help_text)
    return option
