"""The part `tests`: the tests marked gpu, one cell each."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scripts import ROOT
from scripts.gpu_visit.cells import Cell, Context, Found

# A rehearsal runs this test instead of those marked gpu, which are all skipped on a CPU.
_REHEARSED = "tests/runtime/test_calls.py::test_each_name_has_its_own_recording"


def tests(context: Context) -> Iterator[Cell]:
    """Collects once and yields a cell for each test, so that one that hangs costs no other."""
    names = [_REHEARSED] if context.rehearsing else collected(files_with_gpu_tests())
    for name in names:
        yield Cell(name=name, measure=partial(run_test, name))


def files_with_gpu_tests() -> list[str]:
    """Returns the files to import: the machine may lack packages that others need."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted(ROOT.glob("tests/**/test_*.py"))
        if "mark.gpu" in path.read_text(encoding="utf-8")
    ]


class _Notes:
    """A plugin of pytest that notes the collected tests and the outcome of a test."""

    def __init__(self) -> None:
        self.collected: list[str] = []
        self.outcome, self.text = "passed", ""

    def pytest_collection_finish(self, session: Any) -> None:
        self.collected = [item.nodeid for item in session.items]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.outcome, self.text = "failed", str(report.longrepr)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed" and self.outcome == "passed":
            self.outcome = report.outcome
            self.text = str(report.longrepr)


# Warnings are not errors here, because that machine has other versions of packages than those that
# the tests were written with.
_OPTIONS = ["-q", "-p", "no:cacheprovider", "-W", "default", "--rootdir", str(ROOT)]


def collected(files: list[str]) -> list[str]:
    """Returns the names of the tests marked gpu."""
    notes = _Notes()
    pytest.main([*_OPTIONS, "--collect-only", "-m", "gpu", *_paths(files)], plugins=[notes])
    if notes.outcome == "failed":
        raise RuntimeError(f"the tests cannot be collected: {notes.text[-400:]}")
    return notes.collected


def run_test(name: str) -> Found:
    """Runs one test; if it does not pass, the result has the end of pytest's report."""
    notes, start = _Notes(), time.monotonic()
    pytest.main([*_OPTIONS, *_paths([name])], plugins=[notes])
    found: Found = {"outcome": notes.outcome, "test_seconds": round(time.monotonic() - start, 2)}
    if notes.text:
        found["text"] = notes.text[-600:]
    return found


def _paths(names: list[str]) -> list[str]:
    return [str(Path(ROOT) / name) for name in names]
