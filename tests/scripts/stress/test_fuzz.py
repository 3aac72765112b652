"""The targets of fuzzing run on what they start from; fuzzing itself needs atheris."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.stress import fuzz
from scripts.stress import fuzz_targets as targets
from scripts.stress.fuzz_seeds import seeds


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> targets.Originals:
    return targets.Originals(tmp_path_factory.mktemp("fuzz") / "originals")


@pytest.mark.parametrize("name", fuzz.target_names())
def test_a_target_takes_what_it_starts_from_and_damages_of_it(
    originals: targets.Originals, name: str
) -> None:
    run: Callable[[bytes], None] = targets.target(name, originals)
    whole = seeds(name, originals)
    assert len(whole) > 2
    for seed in whole:
        run(seed)
    for seed in whole[:2]:
        middle = len(seed) // 2
        run(seed[:middle])
        run(seed[:middle] + b"\xff\0" + seed[middle + 2 :])


def test_the_names_of_the_targets_are_those_of_its_functions() -> None:
    functions = [name[7:] for name in vars(targets) if name.startswith("target_")]
    assert fuzz.target_names() == functions
    assert len(functions) > 15


def test_a_fault_is_not_taken_for_a_refusal(originals: targets.Originals) -> None:
    def run(originals: targets.Originals, data: bytes) -> None:
        raise {b"e": ValueError, b"i": targets.SglmError}[data]("said")

    targets._guarded(run, originals, b"i")
    with pytest.raises(ValueError, match="said"):
        targets._guarded(run, originals, b"e")


def test_without_atheris_it_says_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.stress.fuzz", "config"],
        cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install atheris" in done.stderr
    assert done.stdout == ""
