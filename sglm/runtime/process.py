"""The settings of a process that computes: those of the C libraries under torch, and of signals.

`import sglm` makes none of them: a program that uses sglm as a library decides for itself.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SignalHandler = Callable[[int, FrameType | None], object] | signal.Handlers

_process = os.getpid()

# Iterations of a spin wait: together a sixth of a millisecond on an Intel CPU, less on others.
SPINS = 3000
# Capacity of oneDNN's cache of kernels; a training step uses some dozens.
KERNELS_KEPT = 128
# Parameters of glibc's mallopt (malloc.h), which no Python module names.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def prepare_process() -> None:
    """Keeps freed memory for the next step, and lets waiting threads sleep after a short spin.

    - A training step allocates its logits and gradients anew each time. glibc hands large blocks
      back to the system when they are freed, and gets them back empty, page by page, at the next
      step: a third of a step's time on two cores at 2×256, V=7,300 (docs/log.md).
    - OpenMP's threads spin while they wait. If another process takes one of the cores, they spin
      through its whole time slice, at every single operation; after a short spin they sleep. Not
      too short a spin: waking up takes longer than the wait for the next operation
      (docs/log.md).
    - oneDNN makes a kernel for every shape, a quarter to half a megabyte, and keeps a thousand of
      them: with texts of all lengths, memory would grow for millions of lines.

    Call it before torch is imported: the libraries read their variables only then. Variables that
    are set already are kept, and other C libraries than glibc are left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # oneDNN's, torch's
        os.environ.setdefault(name, str(KERNELS_KEPT))
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # not glibc
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


@contextmanager
def signals_handled(handler: SignalHandler, *numbers: int) -> Iterator[None]:
    """Inside the block, `handler` handles these signals; afterwards the previous handlers do."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Inside the block, Ctrl-C raises nothing: it prints a line and ends the process by its signal.

    It is for imports of torch, whose C++ code aborts if Python code that it calls raises an
    exception. If the signal has another handler, or is ignored, nothing changes.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    with signals_handled(_print_and_end, signal.SIGINT):
        yield


def _print_and_end(number: int, frame: object) -> None:
    with suppress(OSError):
        os.write(2, b"sglm: interrupted\n")
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def limit_threads_after_fork() -> None:
    """Limits torch to one thread if this process was forked after sglm was imported.

    OpenMP's threads do not survive a fork, and its next parallel region would wait for them forever
    (GCC's libgomp). The call is cheap; make it before anything is computed.
    """
    global _process
    if os.getpid() != _process:
        import torch

        torch.set_num_threads(1)
        _process = os.getpid()


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Inside the block, this thread and those that it starts treat denormals (numbers below 1e-38)
    as zero.

    Gradients that are backpropagated through hundreds of steps become denormal, and an Intel CPU
    computes with denormals many times more slowly (docs/log.md). Enter it before torch starts its
    threads.
    """
    import torch

    kept = bool(torch.full((), 1e-30) * 1e-10 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept)
