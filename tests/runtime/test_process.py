"""Settings of a process: of the C libraries under torch, and of its signals."""

import os
import platform
import signal
import subprocess
import sys

import pytest
import torch

from sglm.runtime.process import SPINS, denormals_as_zero, ended_by_interrupts

ROUNDS, MEGABYTES = 20, 48
FAULTS = f"""
import os, resource, sys
from sglm.runtime.process import prepare_process
if sys.argv[1] == "prepared":
    prepare_process()
print(os.environ.get("GOMP_SPINCOUNT"))
import numpy as np
def allocate():
    return np.ones({MEGABYTES} * 2**20, dtype=np.uint8).sum()
allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(mode: str, **environment: str) -> tuple[str, int]:
    """GOMP_SPINCOUNT, and page faults of allocating and freeing large blocks again and again."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GOMP_", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode],
        capture_output=True,
        text=True,
        check=True,
        env=clean | environment,
    )
    spins, faults = done.stdout.split()
    return spins, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    pages = ROUNDS * MEGABYTES * 2**20 // os.sysconf("SC_PAGE_SIZE")
    spins, faults = run("prepared")
    assert spins == str(SPINS)
    assert faults < pages / 100  # next to none; nearly all of them otherwise
    # Where the environment sets something else, it is left alone. (Huge pages: some 512 times
    # fewer.)
    assert run("prepared", MALLOC_ARENA_MAX="2", GOMP_SPINCOUNT="7")[0] == "7"
    assert run("prepared", MALLOC_ARENA_MAX="2")[1] > faults


KERNELS = """
import sys
from sglm.runtime.process import prepare_process
if sys.argv[1] == "prepared":
    prepare_process()
import torch
from sglm.model.linear import has_onednn, onednn_matmul
from sglm.train.dry_run.memory import resident_bytes
torch.set_num_threads(1)
values_NI, weights_IO = torch.randn(1000, 128), torch.randn(128, 256)
if not has_onednn():
    raise SystemExit(print(0))
onednn_matmul(values_NI, weights_IO)
before = resident_bytes()
for rows in range(300, 1000):
    onednn_matmul(values_NI[:rows], weights_IO)
print((resident_bytes() - before) / 2**20)
"""


def test_kernels_for_new_shapes_do_not_accumulate() -> None:
    def growth_mib(mode: str) -> float:
        clean = {name: value for name, value in os.environ.items() if "CAPACITY" not in name}
        command = [sys.executable, "-c", KERNELS, mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=clean)
        return float(done.stdout)

    prepared, plain = growth_mib("prepared"), growth_mib("imported")
    if plain < 50:
        pytest.skip("here oneDNN keeps no kernels, or takes no part")
    # 128 of 700 kept; the heap has its holes.
    assert prepared < plain / 2, (prepared, plain)


def test_importing_sglm_sets_nothing() -> None:
    assert run("imported")[0] == "None"


def test_denormal_numbers_are_zero_inside_the_block() -> None:
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush them")
    small = torch.full((3,), 1e-30)
    with denormals_as_zero():
        assert (small * 1e-10 == 0).all()
        with denormals_as_zero():
            pass
        assert (small * 1e-10 == 0).all()
    assert (small * 1e-10 > 0).all()


def test_an_interrupt_raises_again_after_the_imports() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with ended_by_interrupts():
            assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_another_handler_of_interrupts_is_kept(handler: object) -> None:
    before = signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]
    try:
        with ended_by_interrupts():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
