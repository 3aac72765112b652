"""What prep and train print as the next command works when it is pasted."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.cli import next_step
from sglm.cli.main import app
from tests.conftest import make_text

# Added to a printed command, so that it takes a second.
BRIEFLY = ["--set", "schedule.unit=steps", "--set", "schedule.cycles=[2, 2]"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def printed_after(word: str, stdout: str) -> list[str]:
    [line] = [line for line in stdout.splitlines() if line.startswith(f"{word}: ")]
    return shlex.split(line.removeprefix(f"{word}: "))


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("lines", "out"),
    [(200, "data/my 'old' store; ls"), (30, "$HOME"), (20, "short"), (20, "./-x")],
)
def test_every_printed_command_works_as_it_is(lines: int, out: str) -> None:
    Path("text.txt").write_text(make_text(lines))
    program, *train = printed_after("next", run("prep", "text.txt", "--out", out))
    assert program == "sglm"
    assert train[train.index("--data") + 1] == out
    folder = Path("runs") / Path(out).name
    assert train[train.index("--out") + 1] == str(folder)
    finished = run(*train, *BRIEFLY)
    assert printed_after("curves", finished)[1:] == ["--logdir", str(folder)]
    _, *evaluate = printed_after("next", finished)
    assert "on test" in run(*evaluate)


def test_without_held_out_text_it_is_not_evaluated() -> None:
    Path("text.txt").write_text(make_text(200))
    prepared = run("prep", "text.txt", "--out", "all", "--valid", "0", "--test", "0")
    _, *train = printed_after("next", prepared)
    _, *generate = printed_after("next", run(*train, *BRIEFLY))
    assert generate[0] == "generate"
    assert run(*generate)


def test_a_text_too_short_for_any_training_gets_no_command() -> None:
    Path("text.txt").write_text("a b\nc\nd\n")
    stdout = run("prep", "text.txt", "--out", "few", "--tokenizer", "byte")
    assert "too little text to train on" in stdout
    assert "next:" not in stdout


def test_a_run_that_is_there_is_not_proposed_again() -> None:
    assert next_step.run_folder(Path("data/book")) == Path("runs/book")
    Path("runs/book").mkdir(parents=True)
    Path("runs/book-2").symlink_to("nowhere")
    assert next_step.run_folder(Path("data/book")) == Path("runs/book-3")
    Path("here").mkdir()
    assert next_step.run_folder(Path("here") / ".." / "here") == Path("runs/here")


def test_the_command_is_the_one_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an activated environment the shell finds no `sglm`, or another one."""
    for folder in ("ours", "the others"):
        Path(folder).mkdir()
        program = Path(folder) / "sglm"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    here = Path.cwd()
    monkeypatch.setattr(sys, "argv", ["the others/sglm", "prep"])
    monkeypatch.setenv("PATH", str(here / "the others"))
    assert next_step.command("eval", Path("run")) == "sglm eval run"
    for path in (str(here / "ours"), ""):
        monkeypatch.setenv("PATH", path)
        assert next_step.command("eval", Path("run")) == "'the others/sglm' eval run"
    monkeypatch.setattr(sys, "argv", ["sglm", "prep"])  # by a program of another name
    monkeypatch.setenv("PATH", str(here / "ours"))
    assert next_step.command("eval", Path("run")) == "sglm eval run"
    monkeypatch.setattr(sys, "argv", ["/somewhere/cli/main.py", "prep"])
    started = f"{shlex.quote(sys.executable)} -m sglm.cli.main"
    assert next_step.command("eval", Path("a b")) == f"{started} eval 'a b'"


def test_tensorboard_is_found_beside_python(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bin here").mkdir()
    Path("bin here/tensorboard").write_text("#!/bin/sh\n")
    Path("bin here/tensorboard").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / "bin here" / "python"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    program, option, folder = shlex.split(next_step.tensorboard(Path("my run")))
    assert Path(program) == Path.cwd() / "bin here" / "tensorboard"
    assert (option, folder) == ("--logdir", "my run")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert next_step.tensorboard(Path("run")) == "tensorboard --logdir run"
