"""The help comes at once: nothing heavy is imported before a command runs."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = ["prep", "train", "eval", "score", "generate", "compare"]
HELP_SECONDS = 0.5  # the contract's figure, on two cores
TRIES = 7  # other programs may be busy: the quickest of so many is what the command itself takes
HEAVY = ["torch", "numpy", "datasets", "pandas", "sentencepiece", "tensorboard", "matplotlib"]


@pytest.mark.parametrize("arguments", [["--help"], *[[name, "--help"] for name in COMMANDS]])
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


def test_help_lists_every_command_with_what_it_does() -> None:
    from typer.testing import CliRunner

    from sglm.cli.main import app

    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    for name in COMMANDS:
        assert f" {name} " in shown


@pytest.mark.parametrize("arguments", [["--help"], *[[name, "--help"] for name in COMMANDS]])
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
