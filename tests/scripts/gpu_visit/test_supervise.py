"""Limits and what is kept of a part that is cut off, with a stand-in for its process that needs no
torch: it reports what it is told to, or hangs, or dies."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scripts import ROOT
from scripts.gpu_visit import supervise
from scripts.gpu_visit.results import Results, read
from scripts.gpu_visit.supervise import Limits, run_part
from sglm.errors import InputError

# Each cell is what is to happen in it. A child of its own must be gone with it.
CHILD = """
import json, os, subprocess, sys, time
told = json.loads(sys.stdin.readline())
def send(message):
    print(json.dumps(message), flush=True)
for cell in told["cells"]:
    if cell in told["earlier"]:
        continue
    send({"begins": cell})
    if "hang" in cell:
        child = subprocess.Popen(["sleep", "60"])
        open(told["pids"], "a").write(f"{child.pid}\\n")
        time.sleep(60)
    if "die" in cell:
        os._exit(3)
    send({"cell": cell, **({"error": "E"} if "error" in cell else {"ms": 1.0})})
    if "lost" in cell:
        sys.exit()
send({"done": True})
"""


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    monkeypatch.setattr(supervise, "CHILD", ["-c", CHILD])
    return Results(tmp_path)


def told(tmp_path: Path, *cells: str) -> dict[str, Any]:
    return {"rehearsing": False, "cells": cells, "pids": str(tmp_path / "pids")}


def test_a_cell_that_hangs_or_kills_its_process_costs_no_other(
    results: Results, tmp_path: Path
) -> None:
    cells = ["a", "hang", "b", "die", "error", "c", "error lost", "d"]
    run_part("p", told(tmp_path, *cells), Limits(part=20, cell=0.7), results)
    found = {record["cell"]: record for record in read(results.path)}
    assert list(found) == cells
    good = [cell for cell, record in found.items() if "error" not in record]
    assert good == ["a", "b", "c", "d"]
    assert "limit of a cell" in found["hang"]["error"]
    assert "ended with 3" in found["die"]["error"]
    pid = int((tmp_path / "pids").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_a_part_ends_at_its_limit_with_what_it_has(results: Results, tmp_path: Path) -> None:
    start = time.monotonic()
    run_part("p", told(tmp_path, "a", "hang", "b"), Limits(part=1.0, cell=9), results)
    assert time.monotonic() - start < 5
    found = {record["cell"]: record for record in read(results.path)}
    assert found["a"]["ms"] == 1.0
    assert "limit of the part" in found["hang"]["error"]
    assert "b" not in found


def test_the_next_run_takes_up_what_is_missing_and_what_failed(
    results: Results, tmp_path: Path
) -> None:
    run_part("p", told(tmp_path, "a", "error"), Limits(part=9, cell=9), results)
    run_part("q", told(tmp_path, "a"), Limits(part=9, cell=9), results)
    again = Results(tmp_path / "next", earlier=[results.path])
    run_part("p", told(tmp_path, "a", "error", "b"), Limits(part=9, cell=9), again)
    assert [record["cell"] for record in read(again.path)] == ["error", "b"]


def test_a_process_that_does_not_start_is_not_tried_for_ever(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "CHILD", ["-c", "import no_such_module"])
    run_part("p", told(tmp_path, "a"), Limits(part=9, cell=9), results)
    (record,) = read(results.path)
    assert record["cell"] == "start"
    assert "no_such_module" in results.log_path.read_text()


def test_a_part_does_not_outlive_who_began_it(tmp_path: Path) -> None:
    """Else the same command given again would share the GPU with what is left of the first."""
    told = {
        "part": "learning",
        "rehearsing": True,
        "seconds": 900.0,
        "work": str(tmp_path),
        "only": "",
    }
    told |= {"environment": {}, "earlier": {}, "data": None, "other": None}
    child = subprocess.Popen(
        [sys.executable, "-m", "scripts.gpu_visit.child"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(told).encode() + b"\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline()) == {"begins": "fit"}
    child.stdin.close()  # as at the end of whoever held it, whatever ended that
    assert child.wait(timeout=60) == -signal.SIGKILL
    child.stdout.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot be written .*give another --out"):
        Results(tmp_path / "file")


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add({"part": "p", "cell": "a"})
    with results.path.open("a") as file:
        file.write('{"part": "p", "cell"')
    results.add({"part": "p", "cell": "b"})
    assert [record["cell"] for record in read(results.path)] == ["a", "b"]
    assert json.loads(results.path.read_text().splitlines()[0])["when"]
