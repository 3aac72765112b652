"""The stress script finds what it is there to find, and sglm gives it nothing to find.

In processes of their own: the script forks, and pytest's process has threads.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts import ROOT

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def chaos(*arguments: str, before: str = "") -> tuple[int, dict[str, Any]]:
    """Exit status and JSON of the script; `before` is Python that is run first in its process."""
    program = f"import sys\nfrom scripts.stress import chaos\n{before}"
    ended = subprocess.run(
        [sys.executable, "-c", f"{program}\nsys.exit(chaos.main())", *arguments, "--json"],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
    )
    assert ended.stdout, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return ended.returncode, found


def test_kills_change_nothing() -> None:
    """One case of each command, at file operations and amid writes; the whole takes minutes."""
    fewer = """
chaos.WAYS = {"operation": 0.6, "torn write": 0.4}
make_cases = chaos.make_cases
chaos.make_cases = lambda folder, what: make_cases(folder, what)[:1]
"""
    code, found = chaos("--kills", "9", "--seed", "3", before=fewer)
    assert found["problems"] == []
    assert code == 0
    assert found["kills"] >= 9
    assert {row["what"] for row in found["rows"]} == {"prep", "train", "compare"}


def test_a_fault_in_resuming_is_found_and_its_run_kept(tmp_path: Path) -> None:
    """Here the state of the random generators is not put back, which a fork inherits."""
    fault = f"""
import tempfile
import sglm.train.session as session
tempfile.tempdir = {str(tmp_path)!r}
session.restore_random_state = lambda state: None
chaos.MEMORY = "/nowhere"
chaos.WAYS = {{"operation": 1.0}}
make_cases = chaos.make_cases
chaos.make_cases = lambda folder, what: make_cases(folder, what)[:1]
"""
    code, found = chaos("--kills", "4", "--what", "train", before=fault)
    assert code == 1
    assert any("state.safetensors: differs" in problem for problem in found["problems"])
    (kept,) = tmp_path.glob("sglm-chaos-*")
    assert list(kept.glob("train-*/out/run.json"))
