"""One writer at a time, also after one that was killed."""

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sglm.errors import InputError, as_sglm_error
from sglm.storage import durable
from sglm.storage.durable import errors_naming, locked, replace_file

HOLD = (
    "import sys; from pathlib import Path; from sglm.storage.durable import locked\n"
    "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_WAIT_SECONDS", 0.2)


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def hold(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_refused_and_the_first_named(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path) as process:
        with (
            pytest.raises(InputError, match=f"in use by process {process.pid} on .*--out"),
            locked(path),
        ):
            pass
        process.communicate("")
    with locked(path):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with hold(path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with locked(path):
        assert f"process {os.getpid()} on" in path.read_text()


def test_a_process_that_is_about_to_end_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_WAIT_SECONDS", 20.0)
    path = tmp_path / "lock"
    with hold(path) as process:
        assert process.stdin is not None
        process.stdin.close()
        with locked(path):
            pass


@pytest.mark.parametrize(
    "content",
    [
        "",
        "nonsense",
        "process 999999999 on {node}",
        "process 99999999999999999999 on {node}",
        "process 0x1 on {node}",
        "\x00",
    ],
)
@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_process_that_has_ended_holds_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lock"
    path.write_text(content.format(node=platform.node()))
    with locked(path):
        pass
    assert path.read_text() == ""


@pytest.mark.parametrize("machine", ["{node}", "another machine"])
@pytest.mark.usefixtures("without_locks")
def test_without_locks_running_processes_and_those_elsewhere_hold_it(
    tmp_path: Path, machine: str
) -> None:
    path = tmp_path / "lock"
    path.write_text(f"process {os.getppid()} on {machine}".format(node=platform.node()))
    with pytest.raises(InputError, match=r"in use by process .* rm .*lock"), locked(path):
        pass


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_process_of_ones_own_number_has_ended(tmp_path: Path) -> None:
    """In a container everybody is number 1."""
    path = tmp_path / "lock"
    path.write_text(f"process {os.getpid()} on {platform.node()}")
    with locked(path):
        assert path.read_text() == f"process {os.getpid()} on {platform.node()}"
    assert path.read_text() == ""


def test_one_number_with_any_stride_is_saved(tmp_path: Path) -> None:
    number = torch.arange(6).reshape(2, 3).T[1:2, 1:2]  # torch calls it contiguous
    assert number.stride() != (1, 1)
    durable.write_tensors(tmp_path / "x.safetensors", {"n": number})
    assert load_file(tmp_path / "x.safetensors")["n"].tolist() == [[4]]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The system does not say which file a write was for."""

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        replace_file(tmp_path / "model.safetensors", full)
    told = as_sglm_error(error.value)
    assert f"no space left on the device ({tmp_path / 'model.safetensors'})" in str(told)
    with pytest.raises(OSError, match="elsewhere") as error, errors_naming(tmp_path / "a"):
        raise OSError(errno.EACCES, "Permission denied", "elsewhere")
    assert error.value.filename == "elsewhere"
