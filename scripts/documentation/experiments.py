"""Tables of experiments, made by their own functions from their files in `docs/data/`."""

import json
from pathlib import Path
from typing import Any

from scripts.documentation.pages import Maker, markdown
from scripts.experiments import long_memory, rivals, usefulness, wrapping
from sglm.errors import InputError


def wrapping_table(names: list[str], docs: Path) -> str:
    """Returns the table of `wrapping.json`, which the experiment writes to its --out."""
    (result,) = _read([docs / "data" / f"{name}.json" for name in names or ["wrapping"]])
    return wrapping.table(result)


def long_memory_table(names: list[str], docs: Path) -> str:
    """Returns the tables of the folder of runs, the --out of `scripts/long_memory`."""
    return long_memory.tables(docs / "data" / (names or ["long-memory"])[0])


def gauges_table(names: list[str], docs: Path) -> str:
    """Returns the table of how each gauge ranks the runs of a folder, the experiment's --out."""
    return usefulness.gauges_table(_usefulness(names, docs))


def usefulness_table(names: list[str], docs: Path) -> str:
    """Returns the table of these runs."""
    return usefulness.runs_table(_usefulness(names, docs))


def rivals_table(names: list[str], docs: Path) -> str:
    """Returns the table of `rivals.json`, to which the experiment adds curve by curve."""
    (corpora,) = _read([docs / "data" / f"{name}.json" for name in names or ["rivals"]])
    return markdown(rivals.table(corpora))


def _usefulness(names: list[str], docs: Path) -> list[dict[str, Any]]:
    folder = docs / "data" / (names or ["usefulness"])[0]
    return usefulness.with_shares(_read(sorted(folder.glob("*.json"))))


def _read(paths: list[Path]) -> list[dict[str, Any]]:
    try:
        return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    except (OSError, ValueError) as error:
        raise InputError(f"{error}; copy the output of the experiment there") from None


TABLES: dict[str, Maker] = {
    "wrapping": wrapping_table,
    "long-memory": long_memory_table,
    "gauges": gauges_table,
    "usefulness": usefulness_table,
    "rivals": rivals_table,
}
