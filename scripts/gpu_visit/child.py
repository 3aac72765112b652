"""The process of one part: `python -m scripts.gpu_visit.child`, told what to do on stdin.

Its stdout is for `cells.perform` alone; what else is printed there goes to stderr, the log.
"""

import json
import os
import sys
import time
from pathlib import Path

from scripts.gpu_visit.cells import Context, perform
from scripts.gpu_visit.visits import load_part
from sglm.runtime.process import denormals_as_zero, prepare_process


def main() -> None:
    told = json.load(sys.stdin)
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
    )
    with denormals_as_zero():
        perform(load_part(told["part"]), context, reports)


if __name__ == "__main__":
    main()
