"""The command to run next, written so that it can be pasted into the shell that ran this one."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from itertools import chain, count
from pathlib import Path


def command(*arguments: str | Path) -> str:
    """Returns an `sglm` command line, quoted for a POSIX shell."""
    return " ".join([*_this_program(), *_quoted(arguments)])


def tensorboard(log_dir: Path) -> str:
    """Returns the command line that shows a run's curves."""
    return " ".join([_beside_python("tensorboard"), *_quoted(["--logdir", log_dir])])


def run_folder(store: Path) -> Path:
    """Returns a folder for a first run on a store: named after the store, and not yet in use."""
    name = store.resolve().name
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(run for each in names if not os.path.lexists(run := Path("runs", each)))


def _quoted(arguments: Iterable[str | Path]) -> list[str]:
    return [shlex.quote(_no_option(argument)) for argument in arguments]


def _no_option(argument: str | Path) -> str:
    """Returns an argument as text; a path that begins with a dash would be read as an option."""
    text = os.fspath(argument)
    return f"./{text}" if isinstance(argument, Path) and text.startswith("-") else text


def _this_program() -> list[str]:
    """Returns `sglm` if the shell finds this program by it, otherwise how it was started."""
    started = sys.argv[0]
    if Path(started).name == "main.py":
        return [shlex.quote(sys.executable), "-m", "sglm.cli.main"]
    found = shutil.which("sglm")
    if Path(started).name != "sglm" or (found and _same(found, started)):
        return ["sglm"]
    return [shlex.quote(started)] if os.path.exists(started) else ["sglm"]


def _same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # sys.argv[0] may be a bare name, not a file in this folder
        return False


def _beside_python(program: str) -> str:
    """Returns a program of this environment, by its name alone if the shell finds one."""
    beside = Path(sys.executable).with_name(program)
    return program if shutil.which(program) or not beside.exists() else shlex.quote(str(beside))
