"""The process that makes one run: its record, its peak, its parent that died."""

import fcntl
import io
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sglm.compare import worker
from sglm.compare.process import worker_command
from sglm.compare.runs import Record
from sglm.compare.worker import Task, WorkerStopRequest, write_record
from sglm.config import plain_values
from sglm.errors import SglmError, Stopped
from sglm.text.store import TokenStore
from sglm.train.loop import Outcome
from tests.compare.conftest import CONFIG, compare_into, fake_python, run


def make_outcome(seconds: float, *, already_finished: bool) -> Outcome:
    return Outcome(
        steps=20,
        tokens_seen=400,
        seconds=seconds,
        best_token_ppl=5.0,
        skipped_steps=0,
        already_finished=already_finished,
        diagnosis=None,
    )


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return make_task({}, Path("data"), tmp_path)


def make_task(config: dict[str, Any], data: Path, folder: Path, parent: int | None = None) -> Task:
    return Task(
        config=config,
        data=str(data),
        run=str(folder / "run"),
        record=str(folder / "run.json"),
        device="cpu",
        precision="fp32",
        parent=parent,
    )


def make_record(*, finished: bool, seconds: float, peak_memory_mb: float | None) -> Record:
    return Record(
        finished=finished,
        seconds=seconds,
        peak_memory_mb=peak_memory_mb,
        device="cpu",
        precision="fp32",
    )


def test_the_record_keeps_the_peak_over_sessions(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter([300.0, 200.0])
    monkeypatch.setattr("sglm.compare.worker.peak_memory_mb", lambda device: next(peaks))
    path = Path(task.record)
    outcome = make_outcome(12.3456, already_finished=False)
    write_record(task, None, Record.read(path))
    assert Record.read(path) == make_record(finished=False, seconds=0.0, peak_memory_mb=300.0)
    write_record(task, outcome, Record.read(path))
    assert Record.read(path) == make_record(finished=True, seconds=12.346, peak_memory_mb=300.0)


def test_a_run_that_was_finished_before_has_no_peak_of_its_own(task: Task) -> None:
    """As when its record was lost: this process trained nothing."""
    write_record(task, make_outcome(12.0, already_finished=True), None)
    assert Record.read(Path(task.record)) == make_record(
        finished=True, seconds=12.0, peak_memory_mb=None
    )


def test_an_orphan_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        request = WorkerStopRequest()
        assert request.signal_number() is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # twice is as good as once
        assert request.signal_number() == signal.SIGTERM
        abandoned = WorkerStopRequest()
        monkeypatch.setattr(os, "getppid", lambda: abandoned.parent + 1)
        assert abandoned.signal_number() == signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's quirk")
def test_the_peak_is_that_of_the_process_not_of_the_one_that_started_it() -> None:
    child = (
        "import torch; from sglm.compare.worker import peak_memory_mb as peak;"
        "device = torch.device('cpu'); before = peak(device); ballast = b'x' * 10**8;"
        "print(before, peak(device))"
    )
    parent = (
        "import subprocess, sys; ballast = b'x' * (8 * 10**8);"
        "print(subprocess.run([sys.executable, '-c', sys.argv[1]], check=True,"
        " capture_output=True, text=True).stdout)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", parent, child], check=True, capture_output=True, text=True
    ).stdout
    before, after = map(float, shown.split())
    assert 20 < before < 700
    # The ballast, but for what was freed after importing and is used again.
    assert math.isclose(after - before, 100, abs_tol=60)


def _hold(log: Path, seconds: float, then: str) -> None:
    """As the orphan of a comparison that was killed: its stderr is the log, and the log locked."""
    log.parent.mkdir(parents=True)
    with open(log, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        subprocess.Popen(["sh", "-c", f"sleep {seconds}; {then}"], stderr=file).returncode = 0


def test_a_run_waits_for_the_orphan_of_a_killed_comparison(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes at one run would remove each other's checkpoints."""
    calls, out = tmp_path / "calls", tmp_path / "out"
    fake_python(
        tmp_path / "python", f"cat > /dev/null; echo worker >> {calls}; exit 1", monkeypatch
    )
    _hold(out / "runs" / "bptt-seed0.log", 0.3, f"echo orphan >> {calls}")
    with pytest.raises(SglmError, match="1 of 1 runs failed"):
        run(word_store, out, variants=["bptt"], seeds=[0])
    assert calls.read_text() == "orphan\nworker\n"


def test_waiting_for_an_orphan_can_be_stopped(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(tmp_path / "python", f"touch {tmp_path / 'called'}", monkeypatch)
    _hold(tmp_path / "out" / "runs" / "bptt-seed0.log", 3, ":")
    polls = iter([None, signal.SIGTERM, signal.SIGTERM])
    with pytest.raises(Stopped):
        run(
            word_store, tmp_path / "out", variants=["bptt"], seeds=[0],
            stop_signal=lambda: next(polls),
        )  # fmt: skip
    assert not (tmp_path / "called").exists()


def test_a_worker_whose_parent_died_logs_a_line_and_no_traceback(
    word_store: TokenStore, tmp_path: Path
) -> None:
    task = make_task(plain_values(CONFIG), word_store.folder, tmp_path, parent=1)
    read, write = os.pipe()
    os.close(read)  # nobody listens
    with open(write, "w") as stdout:
        ended = subprocess.run(
            [sys.executable, "-m", "sglm.compare.worker"],
            input=task.to_json(),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 143
    assert "stopped at step 0 of 20 with everything saved" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_worker_whose_parent_died_before_it_gave_a_task_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "prepare_process", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert worker.main() == 1


def test_a_run_that_could_not_be_saved_at_a_stop_is_not_called_saved(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "cat > /dev/null; trap 'echo no space left; exit 1' TERM; while :; do sleep 0.05; done"
    fake_python(tmp_path / "python", script, monkeypatch)
    polls = iter([None] * 8)
    console = io.StringIO()
    with pytest.raises(Stopped, match="while bptt seed 0 failed"):
        compare_into(
            tmp_path / "out",
            word_store,
            variants=["bptt"],
            seeds=[0],
            console=console,
            stop_signal=lambda: next(polls, signal.SIGTERM),
        )
    assert "failed: no space left" in console.getvalue()


def test_the_clock_tells_a_busy_machine_from_a_free_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = iter([1.0, 1.25, None])
    monkeypatch.setattr(worker, "_waited_seconds", lambda: next(waited))
    clock = worker.WaitingClock()
    clock.started = time.monotonic() - 0.5
    assert clock.share() == pytest.approx(0.5, abs=0.1)  # a quarter second of a half
    assert clock.share() is None


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not say")
def test_waiting_for_a_core_is_counted() -> None:
    """Two processes on one core: each waits for about half of its time."""
    program = """
import os, time
from sglm.compare.worker import WaitingClock

os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
other = os.fork()
clock, until = WaitingClock(), time.monotonic() + 0.6
while time.monotonic() < until:
    pass
if other:
    print(clock.share())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    if result.stdout.strip() == "None":
        pytest.skip("the system does not count")
    assert float(result.stdout) > 0.25


def test_a_run_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("difflib.py", "sglm/errors.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    command = worker_command("sglm.errors")
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
