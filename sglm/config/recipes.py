"""The descriptions of the shipped recipes: the table `[about]` of their files.

A user's configuration may have such a table too, with any content; it has no effect on a run.
"""

from typing import Annotated

from pydantic import Field, ValidationError

from sglm.config.load import read_about, shipped_configs
from sglm.config.schema import Off, Positive, PositiveInt, Section
from sglm.errors import ConfigError


class About(Section):
    """What a recipe is for, and what to expect of it."""

    purpose: str
    """What for, in a sentence."""
    corpus: str
    """The command that prepares the text that the numbers are of."""
    train_tokens: PositiveInt
    """Tokens of its training split."""
    vocabulary: PositiveInt
    """Tokens that there are to predict."""
    parameters: PositiveInt
    """Of the model."""
    memory_mib: PositiveInt
    """Of the whole process on a CPU at its peak, as `sglm train --dry-run` predicts it."""
    minutes: Annotated[Positive | None, Off]
    """Of the training, on two CPU cores; none: not measured."""
    perplexity: Annotated[Annotated[list[Positive], Field(min_length=2, max_length=2)] | None, Off]
    """Of the validation split, per token, at its best: the lowest and the highest of three seeds,
    alike where there was one run; none: not measured."""
    measured: str
    """Where time and perplexity come from."""


def recipes() -> dict[str, About]:
    """Every shipped recipe, by name.

    Raises:
        ConfigError: one lacks something.
    """
    return {name: _about(name) for name in shipped_configs()}


def _about(name: str) -> About:
    try:
        return About.model_validate(read_about(name))
    except ValidationError as error:
        raise ConfigError(f"{name}: its table [about]: {error.errors()[0]['msg']}") from None
