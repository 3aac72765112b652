"""The help comes at once: nothing heavy is imported before a command runs."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.cli.main import FIRST_STEPS, app

COMMANDS = [
    *("prep", "train", "eval", "score", "surprisal", "pairs"),
    *("rescore", "generate", "average", "adapt-train", "compare", "recipes", "config"),
]
ANALYSES = [
    f"analyze {name}"
    for name in ("gradients", "landscape", "representations", "curvature", "norms")
]
EVERY_HELP = ["", *COMMANDS, "analyze", *ANALYSES]
HELP_SECONDS = 0.5  # the contract's figure, on two cores
# Other programs, and the suite's other processes, may be busy: the quickest of so many is what the
# command itself takes.
TRIES = 30
HEAVY = ["torch", "numpy", "datasets", "pandas", "sentencepiece", "tensorboard", "matplotlib"]


@pytest.mark.parametrize("arguments", [[*name.split(), "--help"] for name in EVERY_HELP])
def test_help_comes_at_once(arguments: list[str], tmp_path: Path) -> None:
    seconds = []
    for _ in range(TRIES):
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "sglm.cli.main", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
        assert "Usage" in result.stdout
        assert result.stderr == ""
        if seconds[-1] < HELP_SECONDS:
            break
    assert min(seconds) < HELP_SECONDS, f"{arguments}: {seconds}"


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("command", [name.split() for name in EVERY_HELP])
def test_help_fits_80_columns_and_no_sentence_is_cut(command: list[str]) -> None:
    text = shown(*command, "--help")
    assert max(map(len, text.splitlines())) <= 80
    _, *lines = text.splitlines()  # the first one ends in "SOURCE..."
    assert [line for line in lines if line.endswith("...")] == []
    assert shown(*command, "-h") == text


def test_help_lists_every_command_with_what_it_does() -> None:
    first_words = {line.strip().partition(" ")[0] for line in shown("-h").splitlines()}
    assert {*COMMANDS, "analyze"} <= first_words
    assert {command.name for command in app.registered_commands} == set(COMMANDS)
    (group,) = app.registered_groups
    assert {f"analyze {each.name}" for each in group.typer_instance.registered_commands} == set(
        ANALYSES
    )


def test_the_first_steps_in_the_help_are_commands_that_exist() -> None:
    """Each is parsed, up to the files that are not there."""
    steps = [line.strip() for line in FIRST_STEPS.splitlines() if line.startswith("  ")]
    assert len(steps) > 5
    for step in steps:
        name, *arguments = shlex.split(step.rpartition("| ")[2])
        assert name == "sglm"
        result = CliRunner().invoke(app, [*arguments, "--help"])
        assert result.exit_code == 0, step
        known = result.stdout
        for option in (word for word in arguments if word.startswith("--")):
            assert f"{option} " in known


@pytest.mark.parametrize("arguments", [[*name.split(), "--help"] for name in EVERY_HELP])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = """
import sys
from sglm.cli.main import app

try:
    app(sys.argv[1].split())
except SystemExit:
    pass
print("loaded:", [name for name in sys.argv[2].split() if name in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program, " ".join(arguments), " ".join(HEAVY)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "loaded: []"
