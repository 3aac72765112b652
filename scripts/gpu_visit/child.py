"""The process of one part: `python -m scripts.gpu_visit.child`, told what to do on stdin, a line.

It ends, with all its children, where stdin does: whoever began it is gone, and the next visit must
not share the GPU with it. Its stdout is for `cells.perform` alone; what else is printed there goes
to stderr, the log.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from scripts.gpu_visit.cells import Context, perform
from scripts.gpu_visit.visits import load_part
from sglm.runtime.process import denormals_as_zero, prepare_process


def end_with(stream: int) -> None:
    """Kills this process's group when nobody holds the other end of a pipe any more."""
    while os.read(stream, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    told = json.loads(sys.stdin.readline())
    from_parent = os.dup(0)
    with open(os.devnull, "rb") as empty:  # for processes that a part starts: they must not wait
        os.dup2(empty.fileno(), 0)
    threading.Thread(target=end_with, args=(from_parent,), daemon=True).start()
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    prepare_process()
    os.environ.update(told["environment"])
    context = Context(
        rehearsing=told["rehearsing"],
        data=Path(told["data"]) if told["data"] else None,
        other=Path(told["other"]) if told["other"] else None,
        work=Path(told["work"]),
        earlier=told["earlier"],
        deadline=time.monotonic() + told["seconds"],
        only=told["only"],
    )
    with denormals_as_zero():
        perform(load_part(told["part"]), context, reports)


if __name__ == "__main__":
    main()
