"""`metrics.jsonl`: a durable line for each validation, without those that a run went back from."""

import json
import os
from pathlib import Path
from typing import Any

from sglm.storage.durable import errors_naming, replace_text, sync
from sglm.storage.untrusted import read_bounded

LARGEST_METRICS_BYTES = 1 << 28  # a million validations


def append_metrics(path: Path, line: dict[str, Any]) -> None:
    """Adds a line and waits until it is on the disk."""
    is_new = not path.exists()
    with errors_naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)


def drop_later_lines(path: Path, step: int) -> None:
    """Removes lines of steps after `step`, and a line that a crash cut off."""
    if not path.exists():
        return
    kept = []
    raw = read_bounded(path, LARGEST_METRICS_BYTES)
    for line in raw.decode(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    replace_text(path, "".join(kept))
