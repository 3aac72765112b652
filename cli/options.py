"""Arguments and options that several commands share. Quick to import: every --help does it."""

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
    """The devices to compute on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PrecisionName(StrEnum):
    """The number types of the matrix products."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def one_of(
    name: str, kind: type[Choice], *, help_text: str, meant: Mapping[str, str] | None = None
) -> OptionInfo:
    """Returns an option whose value is a member of an enumeration.

    For any other value, the error message suggests the right one; Typer's own does not.

    Args:
        name: The option as it is typed.
        kind: The enumeration.
        help_text: The help text.
        meant: Other words that users type, and the values that they mean. None: there are none.
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
    """Returns an option whose value is a finite number.

    Args:
        name: The option as it is typed.
        kind: The type of the number.
        help_text: The help text.
        others: Further arguments of `typer.Option`.
    """

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            what = "an integer" if kind is int else "a number"
            raise InputError(f"{name}: {text!r} is not {what}") from None
        if kind is float and not math.isfinite(value):
            raise InputError(f"{name}: {text!r} is not a finite number")
        return value

    option: OptionInfo = typer.Option(
        name, parser=read, **{"metavar": "N" if kind is int else "X", "help": help_text, **others}
    )
    return option


def deterministic_option(help_text: str) -> OptionInfo:
    """Returns the option `--deterministic`, which each command explains in its own words."""
    option: OptionInfo = typer.Option("--deterministic/--no-deterministic", help=help_text)
    return option


def refuse_together(*cases: tuple[object, str]) -> None:
    """Refuses options that do not go together.

    Args:
        cases: Pairs of a condition, true if such options were given, and the error message.

    Raises:
        InputError: A condition is true; the message is that of the first one.
    """
    for wrong, cure in cases:
        if wrong:
            raise InputError(cure)


ConfigArgument = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="A TOML file, or the name of a recipe; `sglm recipes` lists the recipes.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run or a model folder.")]
WholeRunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run that has snapshots.")]
OwnStoreOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="STORE",
        help="Token store; left out: the one that the run was trained on.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one value of the configuration; repeatable. `sglm config` lists the keys.",
    ),
]
DeviceOption = Annotated[
    Device,
    one_of(
        "--device",
        Device,
        help_text="auto: cuda if there is a GPU, otherwise cpu.",
        meant={"gpu": "cuda", "nvidia": "cuda"},
    ),
]
PrecisionOption = Annotated[
    PrecisionName,
    one_of(
        "--precision",
        PrecisionName,
        help_text="Type of the matrix products. auto: bf16, or else fp16, on CUDA; fp32 on a CPU."
        " A CPU with AMX is faster in bf16.",
        meant={"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"},
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LastOption = Annotated[
    int | None,
    number("--last", int, "Only the snapshots of the last N cycles; left out: all."),
]
