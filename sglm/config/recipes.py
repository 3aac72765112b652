"""The descriptions of the recipes: the `[about]` tables of their files.

A user's configuration may have such a table too, with any content; it has no effect on a run.
"""

from typing import Annotated

from pydantic import Field, ValidationError

from sglm.config.load import read_about, shipped_configs
from sglm.config.schema import Off, Positive, PositiveInt, Section
from sglm.errors import ConfigError


class About(Section):
    """The description of a recipe: its purpose, and the results to expect."""

    purpose: str
    """The purpose, in a sentence."""
    corpus: str
    """The command that prepares the text on which the numbers below were obtained."""
    train_tokens: PositiveInt
    """Number of tokens in the training split of this text."""
    vocabulary: PositiveInt
    """Size of the vocabulary."""
    parameters: PositiveInt
    """Number of the model's parameters."""
    memory_mib: PositiveInt
    """Peak memory of the whole process on a CPU, as `sglm train --dry-run` predicts it."""
    minutes: Annotated[Positive | None, Off]
    """Time of the training on two CPU cores; none: not measured."""
    perplexity: Annotated[Annotated[list[Positive], Field(min_length=2, max_length=2)] | None, Off]
    """Best validation perplexity per token: the lowest and the highest of three seeds, which are
    equal if there was one run; none: not measured."""
    measured: str
    """A sentence about how time and perplexity were measured."""


def recipes() -> dict[str, About]:
    """Returns the descriptions of all recipes, by name.

    Raises:
        ConfigError: The description of a recipe is incomplete or invalid.
    """
    return {name: _about(name) for name in shipped_configs()}


def _about(name: str) -> About:
    try:
        return About.model_validate(read_about(name))
    except ValidationError as error:
        raise ConfigError(f"{name}: its table [about]: {error.errors()[0]['msg']}") from None
