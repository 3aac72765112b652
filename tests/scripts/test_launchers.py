"""The shell scripts, run for real but with a stand-in for Python that only notes what it is told.

So nothing is installed or fetched, and what is under test is the scripts' own logic.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from scripts import ROOT

# Those that run a module, and which.
MODULES = {
    "bench": "scripts.benchmarks.training.bench",
    "chaos": "scripts.stress.chaos",
    "gpu": "scripts.gpu_visit",
    "long_memory": "scripts.experiments.long_memory",
}
SHELL_SCRIPTS = ["environment", "quickstart", "test", "test-oldest", "test-extras", *MODULES]

# Calls go to $CALLS, one a line. `-m venv DIR` makes a DIR/bin/python that is this file again and
# a DIR/bin/sglm that notes its arguments. $FAKE_VERSION is its version, $FAIL what goes wrong.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "${0##*/} $*" >>"$CALLS"
case "$*" in
*"version_info < (3, 11)"*) [[ $FAKE_VERSION != 3.[0-9].* && $FAKE_VERSION != 3.10.* ]] ;;
*version_info*) echo "$FAKE_VERSION" ;;
"-m venv"*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    [[ $FAIL != venv ]] || { echo "ensurepip is not available"; exit 1; }
    cp "$FAKE_SGLM" "$3/bin/sglm" ;;
"-m pip"*)
    echo "  Downloading torch-2.13.0-cp311-cp311-linux.whl (180.0 MB)"
    [[ $FAIL != pip ]] || { echo "ERROR: No matching distribution found for torch"; exit 1; } ;;
"-m pytest"*)
    printf '<%s>' "$@" >>"$CALLS"
    echo "7 passed"
    [[ $FAIL != pytest ]] ;;
"- "*) exec "$REAL_PYTHON" "$@" ;;
esac
"""
FAKE_SGLM = """#!/usr/bin/env bash
echo "sglm $*" >>"$CALLS"
case $1 in
prep) mkdir -p "$4" && echo '{}' >"$4/meta.json" ;;
score)
    logprob=-10
    while IFS= read -r line; do
        echo "{\\"text\\": \\"$line\\", \\"logprob\\": $logprob, \\"ppl\\": 5.0}"
        logprob=$((logprob ${SHUFFLES_SCORE:-- 1}))
    done ;;
esac
"""


class Checkout:
    """A copy of the scripts in a folder whose name has a space, and the stand-ins."""

    def __init__(self, folder: Path, real_python: str) -> None:
        self.root = folder / "my checkout"
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        for name in ("pyproject.toml", "setup.py", "constraints.txt", "constraints-oldest.txt"):
            shutil.copy(ROOT / name, self.root)
        self.calls_file = folder / "calls"
        for name, content in (("python", FAKE_PYTHON), ("sglm", FAKE_SGLM)):
            (folder / name).write_text(content)
            (folder / name).chmod(0o755)
        self.elsewhere = folder
        self.environment = {
            **os.environ,
            "PYTHON": str(folder / "python"),
            "FAKE_SGLM": str(folder / "sglm"),
            "REAL_PYTHON": real_python,
            "CALLS": str(self.calls_file),
            "FAKE_VERSION": "3.12.4",
            "FAIL": "nothing",
        }

    def run(
        self, script: str, *arguments: str, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        self.calls_file.write_text("")
        return subprocess.run(
            [str(self.root / "scripts" / script), *arguments],
            cwd=self.elsewhere,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self, what: str) -> list[str]:
        return [line for line in self.calls_file.read_text().splitlines() if what in line]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path, sys.executable)


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_scripts_can_be_run_and_stop_at_the_first_error(name: str) -> None:
    path = ROOT / "scripts" / name
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text(encoding="utf-8")


def test_ci_runs_the_test_scripts_and_nothing_else() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    lines = path.read_text(encoding="utf-8").splitlines()
    steps = [line for line in lines if line.startswith(("scripts/", "exec "))]
    assert steps == ["scripts/test", "scripts/test-oldest", "exec scripts/test-extras"]


def test_the_environment_is_made_once(checkout: Checkout) -> None:
    first = checkout.run("environment", "test")
    assert first.returncode == 0, first.stderr
    assert first.stdout == ""
    (pip,) = checkout.calls("-m pip")
    assert "--constraint constraints.txt --editable .[test]" in pip
    assert "torch-2.13.0" in first.stderr  # progress: what is being downloaded

    again = checkout.run("environment", "test")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert checkout.calls("-m ") == []
    assert checkout.run("environment").returncode == 0
    assert checkout.calls("-m ") == []  # what the tests need includes what a user needs
    assert checkout.run("environment", "dev").returncode == 0
    assert len(checkout.calls("-m pip")) == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "constraints.txt"])
def test_changed_requirements_are_installed(checkout: Checkout, name: str) -> None:
    checkout.run("environment")
    with (checkout.root / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.run("environment").returncode == 0
    assert len(checkout.calls("-m pip")) == 1
    assert checkout.calls("-m venv") == []


def test_another_python_or_place_makes_another_environment(checkout: Checkout) -> None:
    checkout.run("environment")
    checkout.run("environment", FAKE_VERSION="3.13.1")
    assert len(checkout.calls("-m venv")) == 1
    moved = checkout.root.rename(checkout.root.with_name("moved here"))
    checkout.root = moved
    checkout.run("environment", FAKE_VERSION="3.13.1")
    assert len(checkout.calls("-m venv")) == 1
    assert len(checkout.calls("-m pip")) == 1


@pytest.mark.parametrize(
    ("settings", "message", "venvs_to_make"),
    [
        ({"FAKE_VERSION": "3.10.13"}, "Python 3.11 or newer is needed", 1),
        ({"PYTHON": "no-such-python"}, "'no-such-python' does not run", 1),
        ({"FAIL": "venv"}, "apt install python3-venv", 1),
        ({"FAIL": "pip"}, "No matching distribution found for torch", 0),
    ],
)
def test_what_goes_wrong_is_said_with_its_cure(
    checkout: Checkout, settings: dict[str, str], message: str, venvs_to_make: int
) -> None:
    failed = checkout.run("environment", **settings)
    assert failed.returncode == 1
    assert message in failed.stderr
    assert "line " not in failed.stderr  # no complaint of the shell's own
    # Nothing is taken for finished, and nothing is in the way once the cause is gone.
    mended = checkout.run("environment")
    assert mended.returncode == 0, mended.stderr
    assert len(checkout.calls("-m pip")) == 1
    assert len(checkout.calls("-m venv")) == venvs_to_make


def test_a_failed_installation_voids_what_was_installed_before(checkout: Checkout) -> None:
    checkout.run("environment")
    checkout.run("environment", "dev", FAIL="pip")
    checkout.run("environment")
    assert len(checkout.calls("-m pip")) == 1


def test_an_environment_that_is_not_ours_is_never_removed(checkout: Checkout) -> None:
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "precious").touch()
    failed = checkout.run("environment")
    assert failed.returncode == 1
    assert "move it away" in failed.stderr
    assert (checkout.root / ".venv" / "precious").exists()


def test_unknown_level(checkout: Checkout) -> None:
    failed = checkout.run("environment", "tests")
    assert failed.returncode == 1
    assert "known: run, test, dev" in failed.stderr


def test_the_test_script_hands_its_arguments_and_exit_code_on(checkout: Checkout) -> None:
    passed = checkout.run("test", "tests/text", "-k", "a or b")
    assert passed.returncode == 0
    (call,) = checkout.calls("<-m>")
    assert call.startswith("<-m><pytest>")
    assert call.endswith("<tests/text><-k><a or b>")  # after the script's own options: these count
    assert passed.stdout.splitlines()[-1] == "7 passed"
    assert checkout.run("test", FAIL="pytest").returncode == 1


@pytest.mark.parametrize(("name", "module"), MODULES.items())
def test_a_launcher_runs_its_module_from_anywhere(
    checkout: Checkout, name: str, module: str
) -> None:
    assert find_spec(module) is not None
    assert checkout.run(name, "--quick", "two words").returncode == 0
    assert checkout.calls("-m scripts") == [f"python -m {module} --quick two words"]


def test_what_was_packed_runs_without_an_environment(checkout: Checkout, tmp_path: Path) -> None:
    """On a machine without a network: its own python3, with what has travelled on the path."""
    (checkout.root / ".gpu" / "site").mkdir(parents=True)
    (checkout.root / "sglm").mkdir()
    own = tmp_path / "bin" / "python3"
    own.parent.mkdir()
    own.write_text('#!/usr/bin/env bash\necho "python3 $* PYTHONPATH=$PYTHONPATH" >>"$CALLS"\n')
    own.chmod(0o755)
    path = f"{own.parent}:{os.environ['PATH']}"
    assert checkout.run("gpu", "visit1", PATH=path, PYTHONPATH="").returncode == 0
    (call,) = checkout.calls("python3")
    assert call.startswith("python3 -m scripts.gpu_visit visit1")
    assert call.endswith(f"={checkout.root}/.gpu/site:{checkout.root}")
    assert (checkout.root / "sglm" / "cli").readlink() == Path("../cli")
    assert checkout.calls("-m venv") == []


def test_the_oldest_versions_get_an_environment_of_their_own(checkout: Checkout) -> None:
    first = checkout.run("test-oldest")
    assert first.returncode == 0, first.stderr
    (pip,) = checkout.calls("-m pip")
    assert "--constraint constraints-oldest.txt torch==" in pip
    assert checkout.calls("-m venv") == ["python -m venv .venv-oldest"]
    assert "<tests/test_lm.py>" in checkout.calls("<-m>")[0]
    # It is used again, until something that it was made of has changed.
    checkout.run("test-oldest", "tests", "-k", "a or b")
    assert checkout.calls("-m pip") == []
    (call,) = checkout.calls("<-m>")
    assert call.startswith("<-m><pytest><-W><default>")
    assert call.endswith("<tests><-k><a or b>")
    assert "test_lm.py" not in call
    with (checkout.root / "constraints-oldest.txt").open("a") as file:
        file.write("# changed\n")
    failed = checkout.run("test-oldest", FAIL="pip")
    assert failed.returncode == 1
    assert "No matching distribution found for torch" in failed.stderr
    assert checkout.run("test-oldest").returncode == 0
    assert len(checkout.calls("-m pip")) == 1
    assert checkout.run("test-oldest", FAIL="pytest").returncode == 1


def test_the_extras_get_an_environment_on_top_of_the_ordinary_one(checkout: Checkout) -> None:
    first = checkout.run("test-extras")
    assert first.returncode == 0, first.stderr
    assert checkout.calls("-m venv")[-1] == "python -m venv .venv-extras --without-pip"
    core, extras, loose = checkout.calls("-m pip install")
    assert "--editable .[test]" in core
    assert "--constraint constraints.txt" in extras  # and what is installed already stays
    assert "--constraint .venv-extras/installed.txt" in extras
    assert "--no-deps pyctcdecode==" in loose
    wanted = (checkout.root / ".venv-extras/wanted.txt").read_text().split()
    assert {line.partition(">=")[0] for line in wanted} >= {"jiwer", "tokenizers", "ray"}
    assert checkout.calls("<-m>") == ["<-m><pytest><-W><default><tests/extras>"]
    # It is used again, until something that it was made of has changed.
    checkout.run("test-extras", "tests/extras", "-k", "a or b")
    assert checkout.calls("-m pip") == []
    assert checkout.calls("<-m>") == ["<-m><pytest><-W><default><tests/extras><-k><a or b>"]
    with (checkout.root / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    failed = checkout.run("test-extras", FAIL="pip")
    assert failed.returncode == 1
    assert "No matching distribution found" in failed.stderr
    assert checkout.run("test-extras").returncode == 0
    assert checkout.run("test-extras", FAIL="pytest").returncode == 1


def test_quickstart_goes_through_all_steps_and_reuses_the_store(checkout: Checkout) -> None:
    first = checkout.run("quickstart")
    assert first.returncode == 0, first.stderr
    assert [line.split()[1] for line in checkout.calls("sglm ")] == [
        "prep",
        "train",
        "eval",
        "score",
    ]
    assert "checked" in first.stdout
    assert "tensorboard --logdir" in first.stdout
    assert checkout.run("quickstart").returncode == 0
    assert checkout.calls("sglm prep") == []
    assert len(checkout.calls("sglm train")) == 1  # which says itself that the run is finished


def test_quickstart_fails_when_a_shuffle_scores_above_its_sentence(checkout: Checkout) -> None:
    failed = checkout.run("quickstart", SHUFFLES_SCORE="+ 1")
    assert failed.returncode == 1
    assert "a shuffle is more probable" in failed.stderr
    assert "What to type next" not in failed.stdout
