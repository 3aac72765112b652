"""The program `sglm`: collects the commands and turns errors into messages and exit codes."""

import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sglm import __version__
from sglm.cli import (
    adapting,
    analyze,
    average,
    compare,
    config,
    generate,
    pairs,
    prep,
    recipes,
    rescore,
    score,
    surprisal,
    train,
)
from sglm.cli import eval as eval_command
from sglm.cli.streams import drop_full_stdout, prepare_streams
from sglm.errors import ConfigError, InputError, SglmError, SglmWarning, as_sglm_error, printable
from sglm.runtime.process import prepare_process

# Options whose value is not the name of a file; each handles an empty value itself.
MAY_BE_EMPTY = ("--prompt", "--context", "--variants", "--seeds", "--shard", "--prefix")

# click's UsageError, the base class of all errors about arguments; typer does not export it.
USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]


class SglmGroup(TyperGroup):
    """The commands. Each failure that a user can cause becomes a line or two on stderr and an exit
    code; with `SGLM_DEBUG=1` the traceback is printed too."""

    def main(self, *args: Any, **extra: Any) -> Any:
        prepare_streams()
        return super().main(*args, **extra)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with errors_as_messages():
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        for argument in args:
            refuse_surrogates(argument)
        refuse_empty(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        with errors_as_messages(), warnings_as_lines():
            return super().invoke(ctx)


def refuse_surrogates(argument: str) -> None:
    """Refuses text that cannot be written to JSON, logs or TensorBoard's files.

    Raises:
        BadParameter: The argument has a lone surrogate.
    """
    try:
        argument.encode()
        return
    except UnicodeEncodeError:
        problem = "is not UTF-8 (a lone surrogate); rename the file, or give other text"
    with suppress(UnicodeError):
        os.fsencode(argument).decode()
        problem = "is UTF-8, but this locale is not; set LC_ALL=C.UTF-8"
    raise typer.BadParameter(f"{argument!a} {problem}")


def refuse_empty(args: list[str]) -> None:
    """Refuses empty names of files, which would otherwise mean the current folder.

    Raises:
        InputError: An argument is empty, often because a shell variable is not set.
    """
    for before, argument in zip(["sglm", *args], args, strict=False):
        option, equals, value = argument.partition("=")
        if argument == "":
            option = before
        elif not (argument.startswith("--") and equals and not value):
            continue
        if option not in MAY_BE_EMPTY:
            raise InputError(f"the name after {option} is empty; is a shell variable not set?")


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Inside, an error that a user can cause becomes a message and an exit code."""
    try:
        with tracebacks_shown():
            yield
        return
    except ConfigError as error:
        if another_rank_reports():
            raise typer.Exit(error.exit_code) from None
        message, code = str(error), error.exit_code
    except SglmError as error:
        message, code = str(error), error.exit_code
    except USAGE_ERROR as error:
        usage = usage_message(error)
        if usage is None:
            raise
        message, code = usage, 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except BrokenPipeError:
        # The program that reads stdout has ended (`sglm score … | head`): not an error.
        drop_full_stdout()
        raise typer.Exit(0) from None
    except (OSError, MemoryError, RuntimeError) as error:
        translated = as_sglm_error(error)
        if translated is None:
            raise
        drop_full_stdout()
        message, code = str(translated), translated.exit_code
    typer.echo(f"sglm: {printable(message)}", err=True)
    raise typer.Exit(code)


@contextmanager
def tracebacks_shown() -> Iterator[None]:
    """If `SGLM_DEBUG` is set, prints the traceback of an error, which is then raised further."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("SGLM_DEBUG") and not isinstance(error, typer.Exit):
            traceback.print_exc()
        raise


def another_rank_reports() -> bool:
    """Returns whether torchrun started this process, but not as the first on its machine: an error
    in the configuration is the same for all processes, and only the first one reports it."""
    from sglm.runtime.ranks import local_rank

    return bool(local_rank())


def usage_message(error: Any) -> str | None:
    """Returns Typer's message about wrong arguments as one line; None if Typer shows the help
    instead."""
    message = error.format_message().strip()
    if "\n" in message:
        return None
    command = error.ctx.command_path if error.ctx else "sglm"
    return f"{message.rstrip('.')}; see `{command} --help`"


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, sglm's own warnings are shown as a line each on stderr, other warnings as usual."""

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, SglmWarning):
            typer.echo(f"sglm: {printable(str(message))}", err=True)
        else:
            show_other(message, category, *where)

    with warnings.catch_warnings():
        warnings.simplefilter("always", SglmWarning)
        show_other, warnings.showwarning = warnings.showwarning, show  # type: ignore[assignment]
        yield


# \b: Typer keeps the line breaks of such a paragraph.
FIRST_STEPS = """\b
Train a first model, in two minutes, on text that comes with Python:
  sglm prep builtin:python-docs --out data/docs
  sglm train tiny --data data/docs --out runs/docs
  sglm eval runs/docs
  sglm generate runs/docs --prompt "The statement"

\b
Train one on your own text:
  sglm prep book.txt --out data/book
  sglm train tiny --data data/book --out runs/book
  echo "the cat sat" | sglm score runs/book

`sglm COMMAND --help` explains a command. RUN is a folder that `sglm train`
wrote, STORE one that `sglm prep` wrote."""

app = typer.Typer(
    cls=SglmGroup,
    name="sglm",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="LSTM language models trained with alternating synthetic and real gradients.",
    epilog=FIRST_STEPS,
)


def show_version(given: bool) -> None:
    if given:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """LSTM language models trained with alternating synthetic and real gradients."""
    prepare_process()


app.command("prep")(prep.prep)
app.command("train")(train.train)
app.command("eval")(eval_command.evaluate)
app.command("adapt-train")(adapting.adapt_train)
app.command("score")(score.score)
app.command("surprisal")(surprisal.surprisal)
app.command("pairs")(pairs.pairs)
app.command("rescore")(rescore.rescore)
# `generate` reports extra arguments itself, and suggests what the user meant.
app.command("generate", context_settings={"allow_extra_args": True})(generate.generate)
app.command("compare", epilog=compare.VARIANTS_HELP)(compare.compare)
app.add_typer(analyze.analyze)
app.command("average")(average.average)
app.command("recipes")(recipes.recipes)
app.command("config")(config.config)

if __name__ == "__main__":
    app()
