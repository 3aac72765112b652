"""Settings of devices. They can be set, and looked at, without a GPU; tests/gpu sees them work."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm.errors import InputError
from sglm.runtime.device import full_float32, make_deterministic, pick_device
from sglm.scoring.predictor import evaluating
from tests.tiny_models import make_network

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ALLOWED = ["tf32", "tf32", "tf32", "tf32", True, True, "high"]


def switches() -> list[object]:
    """What a GPU makes of float32 products, of matrices and in recurrent nets; "raises" where torch
    refuses to read a switch, because its older and newer ones contradict each other."""
    b = torch.backends
    newer = [b.cuda.matmul.fp32_precision, b.cudnn.rnn.fp32_precision, b.cudnn.conv.fp32_precision]
    newer.append(b.mkldnn.matmul.fp32_precision)
    values: list[object] = [*newer]
    for look in (
        lambda: b.cuda.matmul.allow_tf32,
        lambda: b.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            values.append(look())
        except RuntimeError:
            values.append("raises")
    return values


def tf32_is_off() -> bool:
    return "tf32" not in switches() and switches()[4:] == [False, False, "highest"]


@pytest.fixture
def tf32() -> Iterator[None]:
    """As a user's program may have set it; put back afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    assert switches() == ALLOWED
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("tf32")
def test_no_tf32_inside_and_what_was_before_afterwards() -> None:
    with full_float32(CUDA):
        assert tf32_is_off()
        with full_float32(CUDA):
            pass
        assert tf32_is_off(), "an inner one must not end the outer one"
    assert switches() == ALLOWED
    with full_float32(CPU):
        assert switches() == ALLOWED, "on a CPU there is nothing to set"


@pytest.mark.usefixtures("tf32")
def test_it_is_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), full_float32(CUDA):
        raise ZeroDivisionError
    assert switches() == ALLOWED


@pytest.mark.usefixtures("tf32")
def test_threads_do_not_take_it_away_from_each_other() -> None:
    seen: list[bool] = []

    def work() -> None:
        for _ in range(200):
            with full_float32(CUDA):
                seen.append(tf32_is_off())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1600
    assert all(seen)
    assert switches() == ALLOWED


@pytest.mark.usefixtures("tf32")
def test_evaluation_is_in_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that scores goes through `evaluating`."""
    devices = []

    def spy(device: torch.device) -> object:
        devices.append(device)
        return full_float32(CUDA)

    monkeypatch.setattr("sglm.scoring.predictor.full_float32", spy)
    with evaluating(make_network(5)):
        assert tf32_is_off()
    assert devices == [CPU]
    assert switches() == ALLOWED


SETTINGS = [
    "pass",
    "b.cuda.matmul.allow_tf32 = True",
    "b.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('medium')",
    "b.fp32_precision = 'tf32'",
    "b.fp32_precision = 'ieee'",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "b.cudnn.rnn.fp32_precision = 'ieee'",
]
# Each in a fork of its own, for there is no way back to how torch starts.
EACH_SETTING = """
import json, os, sys, torch
from tests.runtime.test_device import CUDA, full_float32, switches, tf32_is_off
b = torch.backends

def try_out(settings):
    exec(settings)
    before = switches()
    with full_float32(CUDA):
        assert tf32_is_off(), (settings, switches())
    after = switches()
    # A contradiction between the older and the newer switches need not come back.
    assert all(x == y or x == "raises" for x, y in zip(before, after)), (settings, before, after)

for settings in json.loads(sys.argv[1]):
    if (child := os.fork()) == 0:
        try_out(settings)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, settings
"""


def test_any_setting_comes_back() -> None:
    """torch has two families of switches; whichever a program uses is as it was before."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", EACH_SETTING, json.dumps(SETTINGS)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def look(device: str, **environment: str) -> list[str]:
    """The settings after `make_deterministic`, in a process of its own: they are a process's."""
    program = f"""
import os, torch
from sglm.runtime.device import make_deterministic
make_deterministic(torch.device({device!r}))
b = torch.backends
print(torch.are_deterministic_algorithms_enabled(), b.cudnn.deterministic, b.cudnn.benchmark,
      b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32, os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
      torch.cuda.is_initialized())
"""
    clean = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_deterministic_settings_on_cuda_and_none_on_a_cpu() -> None:
    assert look("cuda") == ["True", "True", "False", "False", "False", ":4096:8", "False"]
    assert look("cpu") == ["False", "False", "False", "False", "True", "None", "False"]
    assert look("cuda", CUBLAS_WORKSPACE_CONFIG=":16:8")[5] == ":16:8", "the user's own choice"


def test_a_workspace_that_is_not_deterministic_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(InputError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 .* unset it"):
        make_deterministic(CUDA)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_gpu_by_its_common_name_is_not_taken_for_a_cpu() -> None:
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        pick_device("gpu")


def test_a_cpu_does_not_round_although_the_caller_asked_for_it() -> None:
    precision: Any = torch.backends.mkldnn.matmul
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32(CPU):
            assert precision.fp32_precision == "ieee"
            with evaluating(make_network(10)):
                assert precision.fp32_precision == "ieee"
            assert precision.fp32_precision == "ieee"
        assert precision.fp32_precision == "bf16"
        with evaluating(make_network(10)):
            assert precision.fp32_precision == "ieee"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
