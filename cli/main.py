"""The `sglm` command: collects the commands and turns errors into messages and exit codes."""

import os
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from sglm import __version__
from sglm.cli import compare, generate, prep, score, train
from sglm.cli import eval as eval_command
from sglm.runtime.process import prepare_process


class SglmGroup(TyperGroup):
    """Every failure a user can cause becomes one or two lines on stderr and an exit code.

    `SGLM_DEBUG=1` shows the traceback instead.
    """

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        for argument in args:
            try:
                argument.encode()
            except UnicodeEncodeError:
                # A path of such bytes cannot be written down in JSON, logs or TensorBoard's files.
                raise typer.BadParameter(
                    f"{argument!a} is not UTF-8 (a lone surrogate); rename the file, or give"
                    " other text"
                ) from None
        return super().parse_args(ctx, args)

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        if os.environ.get("SGLM_DEBUG"):
            return super().invoke(ctx)
        from sglm.errors import SglmError, as_sglm_error, printable

        try:
            return super().invoke(ctx)
        except SglmError as error:
            message, code = str(error), error.exit_code
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        except BrokenPipeError:
            # The reader of our output went away (`sglm score … | head`): not an error of ours.
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            raise typer.Exit(0) from None
        except (OSError, MemoryError, RuntimeError) as error:
            translated = as_sglm_error(error)
            if translated is None:
                raise
            message, code = str(translated), translated.exit_code
        typer.echo(f"sglm: {printable(message)}", err=True)
        raise typer.Exit(code)


app = typer.Typer(
    cls=SglmGroup,
    name="sglm",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="LSTM language models trained with alternating synthetic and real gradients.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """LSTM language models trained with alternating synthetic and real gradients."""
    prepare_process()


app.command("prep")(prep.prep)
app.command("train")(train.train)
app.command("eval")(eval_command.evaluate)
app.command("score")(score.score)
app.command("generate")(generate.generate)
app.command("compare", epilog=compare.VARIANTS_HELP)(compare.compare)

if __name__ == "__main__":
    app()
