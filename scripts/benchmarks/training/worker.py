"""One arm in a process of its own, which takes steps on request.

So every arm runs as it does for its users: sglm with the settings that `sglm train` makes in the C
libraries under torch, the ordinary loop without them. Its peak memory is measured separately, too.

`python -m scripts.benchmarks.training.worker` reads a `Task` as JSON from the first line of stdin,
then one request per line: `["seconds", n]`, `["seconds", n, turn]`, `["shares"]`, `["memory_mb"]`
or `["block"]`. It answers each with a line of JSON.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scripts import ROOT
from sglm.errors import SglmError
from sglm.runtime.process import denormals_as_zero, prepare_process

if TYPE_CHECKING:
    from scripts.benchmarks.training.case import Place, Size

# torch is imported in functions only, because a process must be prepared before that import.


@dataclass(frozen=True)
class Task:
    """The arm to run, its size and place; `text_tokens` and `horizon` as in `arms.build_arm`."""

    name: str
    size: "Size"
    place: "Place"
    threads: int
    text_tokens: int | None = None
    horizon: int | None = None


class Worker:
    """An arm, and the measurements that can be requested of it."""

    def __init__(self, task: Task) -> None:
        import torch

        from scripts.benchmarks.training.arms import build_arm
        from scripts.benchmarks.training.floor import set_tf32

        torch.set_num_threads(task.threads)
        if task.place.device == "cuda":
            set_tf32(task.place.tf32)
        self.device = torch.device(task.place.device)
        self.arm = build_arm(task.name, task.size, task.place, task.text_tokens, task.horizon)

    def ask(self, what: str, *arguments: Any) -> Any:
        """Returns the answer to a request; see the methods."""
        answers: dict[str, Callable[..., Any]] = {
            "seconds": self.seconds,
            "shares": self.shares,
            "memory_mb": self.memory_mb,
            "block": lambda: self.arm.block,
        }
        return answers[what](*arguments)

    def seconds(self, windows: int, turn: str | None = None) -> float:
        """Returns the mean seconds per window.

        Args:
            windows: Number of windows: whole blocks (`Arm.block`).
            turn: One of `arms.TURNS`. None: the arm's own turns. With turns, the cost of a
                synthesizer is measured within one process: two processes that do the same differ
                by several per cent, because their memory is laid out differently.
        """
        from scripts.benchmarks.training.floor import elapsed_seconds, synchronize

        def steps() -> None:
            for _ in range(windows):
                self.arm.step(turn)

        synchronize(self.device)
        return elapsed_seconds(steps, self.device) / windows

    def shares(self) -> dict[str, float]:
        """Returns the shares of a step's parts; see `parts`."""
        from scripts.benchmarks.training.parts import shares

        return shares(self.arm, self.device)

    def memory_mb(self) -> float:
        """Returns the peak memory so far, in 10⁶ bytes.

        On a CPU it is the resident memory of the process, Python and torch included (some 350 MB);
        on a GPU the memory that torch allocated there.
        """
        from sglm.compare.worker import peak_memory_mb

        return peak_memory_mb(self.device)


class Process:
    """A `Worker` in a process of its own."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.process = subprocess.Popen(
            [sys.executable, "-m", "scripts.benchmarks.training.worker"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> None:
        """Sends the task; the arm is built at the first request."""
        self._send(asdict(self.task))

    def ask(self, what: str, *arguments: Any) -> Any:
        """Returns the answer to a request; see `Worker.ask`.

        Raises:
            SglmError: The arm ran out of memory, or its process has ended.
        """
        self._send([what, *arguments])
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise SglmError(f"the process of {self.task.name!r} ended with {code}: out of memory?")
        answer = json.loads(line)
        if "error" in answer:
            raise SglmError(f"{self.task.name}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()

    def _send(self, message: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            code = self.process.wait()
            raise SglmError(f"the process of {self.task.name!r} ended with {code}") from None


@contextmanager
def running(tasks: list[Task]) -> Iterator[list[Process]]:
    """Starts a process for each task, all at once; they end with the context."""
    with ExitStack() as stack:
        processes = []
        for task in tasks:
            process = Process(task)
            stack.callback(process.close)
            process.start()
            processes.append(process)
        yield processes


def main() -> None:
    values = json.loads(sys.stdin.readline())
    prepared = values["name"] != "plain"
    if prepared:
        prepare_process()
    import torch

    from scripts.benchmarks.training.case import Place, Size

    values |= {"size": Size(**values["size"]), "place": Place(**values["place"])}
    worker = None
    with denormals_as_zero() if prepared else nullcontext():
        for line in sys.stdin:
            try:
                worker = worker or Worker(Task(**values))
                answer = {"value": worker.ask(*json.loads(line))}
            except torch.OutOfMemoryError as error:
                answer = {"error": str(error).splitlines()[0]}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
