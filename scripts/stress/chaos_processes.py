"""Processes to be killed: sglm's command line in a fork of a process that has loaded all modules.

A fork takes milliseconds, a fresh Python with torch takes seconds. Both test the same: the parent
of a fork computes nothing and has one thread, and SIGKILL gives no process time to clean up.
"""

import contextlib
import mmap
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TextIO

# The events that Python's audit hooks receive before an operation; os.replace raises os.rename.
_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_SECONDS_TO_HANG = 300.0


@dataclass
class Saboteur:
    """A saboteur that ends a process at its n-th file operation, or during the next write.

    File operations are renames, removals, new folders and links, files opened for writing, and
    fsync. They are counted over a process and those that it forks.

    Attributes:
        operation: Number of the operation, counted from 1. 0: only counts, and ends nothing.
        torn_bytes: Size in bytes to which every file is limited from the operation on: the first
            write beyond it is cut off there, and ends the process. None: the process ends just
            before the operation.
        spare_others: Whether a forked process that comes to the operation ends only its parent, and
            is left behind as an orphan.
    """

    operation: int = 0
    torn_bytes: int | None = None
    spare_others: bool = False
    main: int = 0
    counter: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))

    def done(self) -> int:
        """Returns the number of operations so far."""
        return int.from_bytes(self.counter[:8], "little")

    @property
    def struck(self) -> bool:
        return 0 < self.operation <= self.done()

    def install(self) -> None:
        """Begins to count the operations of this process and its children."""
        self.main = os.getpid()
        if self.torn_bytes is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # otherwise Python raises an error
        synced = os.fsync

        def fsync(descriptor: Any) -> None:
            self._count()
            synced(descriptor)

        os.fsync = fsync  # type: ignore[assignment]
        sys.addaudithook(self._on_audit_event)

    def _on_audit_event(self, event: str, details: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = details
            if not isinstance(path, int) and flags & _WRITING and _counts(path):
                self._count()
        elif event in _EVENTS:
            self._count()

    def _count(self) -> None:
        done = self.done() + 1
        self.counter[:8] = done.to_bytes(8, "little")
        if done != self.operation:
            return
        if self.torn_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.torn_bytes, resource.RLIM_INFINITY))
            return
        if os.getpid() != self.main:
            os.kill(self.main, signal.SIGKILL)
            if self.spare_others:
                return
        os.kill(os.getpid(), signal.SIGKILL)


def _counts(path: Any) -> bool:
    return not os.fsdecode(path).startswith(("/dev/null", "/dev/tty", "/proc/"))


@dataclass(frozen=True)
class Ending:
    """The end of a process.

    Attributes:
        code: Its exit status, or minus the number of the signal that ended it.
        output: Everything that it wrote to stdout and stderr.
    """

    code: int
    output: str

    @property
    def killed(self) -> bool:
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass
class Victim:
    """A process in a group of its own, and the pipe with its output."""

    pid: int
    output: int

    def wait(self, seconds: float | None = None) -> Ending:
        """Waits until the process ends; after `seconds`, SIGKILL ends it and its group.

        Raises:
            TimeoutError: `seconds` is None, and the process hangs.
        """
        received = b""
        started = time.monotonic()
        deadline = started + (_SECONDS_TO_HANG if seconds is None else seconds)
        while True:
            left = deadline - time.monotonic()
            if select.select([self.output], [], [], max(left, 0.0))[0]:
                if chunk := os.read(self.output, 1 << 16):
                    received += chunk
                    continue
                break
            if left <= 0:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
                deadline = time.monotonic() + 10.0
                if seconds is None:
                    raise TimeoutError(f"hangs after:\n{received.decode(errors='replace')}")
        os.close(self.output)
        return Ending(_code(os.waitpid(self.pid, 0)[1]), received.decode(errors="replace"))


def _code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def forked(arguments: Sequence[str], saboteur: Saboteur) -> Victim:
    """Starts `sglm ARGUMENTS` in a fork of this process."""
    output, theirs = os.pipe()

    def run() -> int:
        saboteur.install()
        return _sglm(arguments)

    pid = _fork(run, os.open(os.devnull, os.O_RDONLY), theirs, theirs)
    os.close(theirs)
    return Victim(pid, output)


def fresh(arguments: Sequence[str]) -> Victim:
    """Starts `sglm ARGUMENTS` in a Python process of its own, as a user does."""
    output, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "sglm.cli.main", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    process.returncode = 0  # this module waits for it by its process id
    os.close(theirs)
    return Victim(process.pid, output)


def warm_up() -> None:
    """Imports all modules that a command needs, so that forks need not import them."""
    import matplotlib.figure  # noqa: F401
    import torch
    import torch._dynamo  # torch's optimizers import it when they are first made

    import sglm.cli.main
    import sglm.compare.comparison
    import sglm.text.sentencepiece_tokenizer
    import sglm.train.loop  # noqa: F401

    torch.set_num_threads(1)


def _sglm(arguments: Sequence[str]) -> int:
    import sglm.compare.process as process
    from sglm.cli.main import app

    # The runs of a comparison are forks as well.
    process.subprocess = SimpleNamespace(  # type: ignore[assignment, attr-defined]
        Popen=ForkedWorker, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired
    )
    try:
        app(list(arguments), prog_name="sglm")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


def _fork(run: Callable[[], int], stdin: int, stdout: int, stderr: int) -> int:
    """Forks; the child gets a session and streams of its own, and exits with what `run` returns."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        given = [os.dup(descriptor) for descriptor in (stdin, stdout, stderr)]
        for number, descriptor in enumerate(given):
            os.dup2(descriptor, number)
        for descriptor in {stdin, stdout, stderr, *given} - {0, 1, 2}:
            os.close(descriptor)
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
        for name, number in (("stdout", 1), ("stderr", 2)):
            setattr(sys, name, open(number, "w", buffering=1, closefd=False, encoding="utf-8"))  # noqa: SIM115
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


class ForkedWorker:
    """A fork that runs `sglm.compare.worker`, with the used parts of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], *, stderr: TextIO, **_: object) -> None:
        theirs_in, self._stdin = os.pipe()
        self._stdout, theirs_out = os.pipe()
        self.returncode: int | None = None
        self._received = b""

        def run() -> int:
            os.close(self._stdin)
            os.close(self._stdout)
            from sglm.compare.worker import main

            return main()

        self.pid = _fork(run, theirs_in, theirs_out, stderr.fileno())
        os.close(theirs_in)
        os.close(theirs_out)

    def communicate(self, given: str | None, timeout: float) -> tuple[str, None]:
        if given is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._stdin, given.encode())
            os.close(self._stdin)
        deadline = time.monotonic() + timeout
        while select.select([self._stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
            if not (chunk := os.read(self._stdout, 1 << 16)):
                os.close(self._stdout)
                self.returncode = _code(os.waitpid(self.pid, 0)[1])
                return self._received.decode(), None
            self._received += chunk
        raise subprocess.TimeoutExpired("sglm.compare.worker", timeout)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
