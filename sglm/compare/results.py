"""`results.json` and `table.md`: what the finished runs of a comparison come to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglm.compare.runs import Comparison, FinishedRun
from sglm.compare.statistics import summarize
from sglm.compare.table import table
from sglm.config import plain_values
from sglm.errors import InputError
from sglm.storage.durable import replace_text
from sglm.storage.untrusted import is_count, read_json
from sglm.train.record import versions

_RESULTS_FILE = "results.json"
_LARGEST_RESULTS_BYTES = 1 << 26


def write_results(comparison: Comparison, runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Writes both files; returns what is in `results.json`."""
    results = {
        "variants": summarize(runs),
        "updates": comparison.updates,
        "horizon": comparison.horizon,
        "config": plain_values(comparison.base),
        "data": {
            "folder": str(comparison.store.folder),
            "fingerprint": comparison.store.fingerprint,
        },
        "versions": versions(comparison.store.tokenizer().kind),
    }
    comparison.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False, ensure_ascii=False)
    replace_text(comparison.out / _RESULTS_FILE, text + "\n")
    replace_text(comparison.out / "table.md", table(results) + "\n")
    return results


def written_horizon(out: Path) -> int | None:
    """The horizon of the comparison that is in `out` already, if there is one."""
    try:
        horizon = read_json(out / _RESULTS_FILE, _LARGEST_RESULTS_BYTES)["horizon"]
    except (OSError, ValueError, LookupError, TypeError, InputError):
        return None
    return horizon if is_count(horizon) else None
