"""Arguments and options that several commands share. Light to import: every --help reads it."""

import math
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.models import OptionInfo

from sglm.errors import InputError, did_you_mean

Choice = TypeVar("Choice", bound=StrEnum)


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


def one_of(
    name: str, kind: type[Choice], *, help_text: str, meant: Mapping[str, str] | None = None
) -> OptionInfo:
    """An option whose value is one of an enumeration's.

    For any other value, the error message suggests the right one; Typer's own does not.

    Args:
        name: as it is typed.
        kind: the values.
        help_text: a sentence.
        meant: what people type, and the value that they mean.
    """

    values = [each.value for each in kind]

    def read(text: str) -> Choice:
        if text in values:
            return kind(text)
        near = (meant or {}).get(text.lower())
        cure = f"; did you mean {near!r}?" if near else did_you_mean(text.lower(), values)
        raise InputError(f"{name}: unknown {text!r}{cure}")

    option: OptionInfo = typer.Option(name, parser=read, metavar="|".join(values), help=help_text)
    return option


def number(name: str, kind: type[int] | type[float], help_text: str, **others: Any) -> OptionInfo:
    """An option whose value is a number, finite.

    Args:
        name: as it is typed.
        kind: of number.
        help_text: a sentence.
        others: as of `typer.Option`.
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            what = "integer" if kind is int else "number"
            raise InputError(f"{name}: {text!r} is no {what}") from None
        if kind is float and not math.isfinite(value):
            raise InputError(f"{name}: {text!r} is no finite number")
        return value

    option: OptionInfo = typer.Option(
        name, parser=read, **{"metavar": "N" if kind is int else "X", "help": help_text, **others}
    )
    return option


def deterministic_option(help_text: str) -> OptionInfo:
    """`--deterministic`, which each command explains in its own words."""
    option: OptionInfo = typer.Option("--deterministic/--no-deterministic", help=help_text)
    return option


def refuse_together(*cases: tuple[object, str]) -> None:
    """
    Args:
        cases: options that do not go together as they are given (true if so), and the cure.

    Raises:
        InputError: in the first case that is true.
    """
    for wrong, cure in cases:
        if wrong:
            raise InputError(cure)


ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG", help="A TOML file, or the name of a recipe: `sglm recipes` lists them."
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a model folder.")]
WholeRunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run, with its snapshots.")]
OwnStoreOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="STORE", help="Left out: the store that the run was trained on."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one value; repeatable. `sglm config` lists the keys.",
    ),
]
DeviceOption = Annotated[
    Device,
    one_of(
        "--device",
        Device,
        help_text="auto: cuda where there is one.",
        meant={"gpu": "cuda", "nvidia": "cuda"},
    ),
]
PrecisionOption = Annotated[
    PrecisionName,
    one_of(
        "--precision",
        PrecisionName,
        help_text="auto: bf16 or fp16 on CUDA, fp32 on a CPU. With AMX a CPU is faster in bf16.",
        meant={"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"},
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LastOption = Annotated[
    int | None,
    number("--last", int, "Only the snapshots of the last N cycles; left out: of all."),
]
