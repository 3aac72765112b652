"""The process of one part: `python -m scripts.gpu_visit.child`, with its task as JSON on stdin.

The task is one line. The process ends with all its children when stdin ends, because its parent is
then gone and the next visit must not share the GPU with it. Its stdout holds only the reports of
`cells.perform`; everything else that is printed there goes to stderr, which is the log.
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
    """Kills this process's group when the other end of a pipe has been closed."""
    while os.read(stream, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    told = json.loads(sys.stdin.readline())
    from_parent = os.dup(0)
    with open(os.devnull, "rb") as empty:  # stdin of a part's processes, which must not wait
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
