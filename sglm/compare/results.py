"""Writes `results.json` and `table.md`, the results of a comparison's finished runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sglm.compare.grid import Cell
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


def write_results(
    comparison: Comparison, runs: Sequence[FinishedRun], *, missing: Sequence[Cell] = ()
) -> dict[str, Any]:
    """Writes both files, and returns the content of `results.json`.

    Args:
        comparison: The settings that the runs share.
        runs: All finished runs.
        missing: The runs that were asked for and are not finished.
    """
    results = {
        "variants": summarize(runs),
        "missing": [{"variant": cell.variant, "seed": cell.seed} for cell in missing],
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
    """Returns the horizon of the comparison already in `out`; None if there is none."""
    try:
        horizon = read_json(out / _RESULTS_FILE, _LARGEST_RESULTS_BYTES)["horizon"]
    except (OSError, ValueError, LookupError, TypeError, InputError):
        return None
    return horizon if is_count(horizon) else None
