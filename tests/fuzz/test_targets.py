"""The targets of scripts/fuzz.py run on what they start from; fuzzing itself needs atheris."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.loading import SCRIPTS, load_script

FUZZ = load_script("fuzz")


@pytest.fixture(scope="module")
def targets() -> ModuleType:
    return load_script("fuzz_targets")


@pytest.fixture(scope="module")
def bench(targets: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    return targets.Bench(tmp_path_factory.mktemp("fuzz") / "bench")


@pytest.mark.parametrize("name", FUZZ.target_names())
def test_a_target_takes_what_it_starts_from_and_damages_of_it(
    targets: ModuleType, bench: object, name: str
) -> None:
    run: Callable[[bytes], None] = targets.target(name, bench)
    whole = targets.seeds(name, bench)
    assert len(whole) > 2
    for seed in whole:
        run(seed)
    for seed in whole[:2]:
        middle = len(seed) // 2
        run(seed[:middle])
        run(seed[:middle] + b"\xff\0" + seed[middle + 2 :])


def test_the_names_of_the_targets_are_those_of_its_functions(targets: ModuleType) -> None:
    functions = [name[7:] for name in vars(targets) if name.startswith("target_")]
    assert FUZZ.target_names() == functions
    assert len(functions) > 15


def test_a_fault_is_not_taken_for_a_refusal(targets: ModuleType, bench: object) -> None:
    def run(bench: object, data: bytes) -> None:
        raise {b"e": ValueError, b"i": targets.SglmError}[data]("message")

    targets._guarded(run, bench, b"i")
    with pytest.raises(ValueError, match="message"):
        targets._guarded(run, bench, b"e")


def test_without_atheris_the_message_is_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "atheris.py").write_text("raise ImportError")
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "fuzz.py"), "config"],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install atheris" in done.stderr
    assert done.stdout == ""
