"""The search script: every arm can be built, a run resumes from its file, arms change one thing."""

import json
import sys
from pathlib import Path

import pytest

from scripts.experiments import search
from sglm.config import differences
from sglm.text.store import TokenStore


def test_arms_run_once_and_the_table_shows_them(
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arms = ["lookahead (default)", "bptt", "cell only", "moments reset", "taught 1 in 2"]
    command = ["search", str(word_store.folder), "--updates", "24", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*command, "--arms", ";".join(arms)])
    search.main()
    table = capsys.readouterr().out
    assert all(f"| {arm} |" in table for arm in arms)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(files) == len(arms)
    search.main()
    assert capsys.readouterr().out == table
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    results = {run["arm"]: run for run in map(json.loads, (p.read_text() for p in files))}
    # The real cycle is the same for all; what differs comes after the restart, a third update.
    ends = {name: results[name]["curve"][-1][1] for name in arms}
    assert len(set(ends.values())) == len(arms)


@pytest.mark.parametrize("name", search.ARMS)
def test_an_arm_changes_what_it_says_and_nothing_else(name: str) -> None:
    default = search.configure(search.Arm(), 5, 4000, 0)
    arm = search.ARMS[name]
    changed = differences(default, search.configure(arm, 5, 4000, 0))
    assert len(changed) == len(arm.settings) + (arm.cycles != search.CYCLES)
