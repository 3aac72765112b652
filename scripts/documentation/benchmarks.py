"""Tables of the results that scripts of `scripts/benchmarks` wrote on a machine."""

import json
from pathlib import Path
from typing import Any

from scripts.benchmarks import memory
from scripts.benchmarks.training.case import Size
from scripts.benchmarks.training.parts import PARTS
from scripts.documentation.pages import Maker, markdown
from sglm.errors import InputError

FOLDER = "benchmarks"
# The names in the output of `--quick --json`, and their labels in the table.
QUICK = {
    "plain": "plain PyTorch loop",
    "real": "sglm, real gradients",
    "real_learning": "the same, while the adjoint's network learns",
    "synthetic": "the same, while the adjoint injects",
}


def quick_table(names: list[str], docs: Path) -> str:
    """Returns the rates of `--quick --json`: a column for each file, given as NAME:HEADING."""
    files = [name.partition(":") for name in names]
    results = [_read(docs / FOLDER / f"{name}.json") for name, _, _ in files]
    rows = [["tokens/s", *(heading.replace("_", " ") for _, _, heading in files)]]
    rows.append(["matrix products alone", *(f"{r['floor_tokens_per_s']:,.0f}" for r in results)])
    for key, label in QUICK.items():
        rows.append([label, *(_rate(result, key) for result in results)])
    return markdown(rows)


def _rate(result: dict[str, Any], key: str) -> str:
    rate = result[f"{key}_tokens_per_s"]
    return f"{rate:,.0f} ({100 * rate / result['floor_tokens_per_s']:.0f} %)"


def bench_table(names: list[str], docs: Path) -> str:
    """Returns each case of files of `--out`: rates, cost over real, memory, shares of a step."""
    parts = []
    for name in names:
        result = _read(docs / FOLDER / f"{name}.json")
        parts += [_case(case) for case in result["cases"] if "skipped" not in case]
    return "\n\n".join(parts)


def _case(case: dict[str, Any]) -> str:
    floor = case["floor"]
    shown = [*PARTS, "other"]
    rows = [["", "tokens/s (quartiles)", "of the floor", "over real (quartiles)", "MB", *shown]]
    for name, arm in case["arms"].items():
        low, high = arm["tokens_per_s_quartiles"]
        over = ""
        if "over_real" in arm:
            least, most = arm["over_real_quartiles"]
            over = f"{_percent(arm['over_real'])} ({_percent(least)} to {_percent(most)})"
        rows.append(
            [
                name,
                f"{arm['tokens_per_s']:,.0f} ({low:,.0f}–{high:,.0f})",
                f"{100 * arm['of_floor']:.0f} %",
                over,
                f"{arm['peak_memory_mb']:,.0f}",
                *(f"{100 * arm['shares'][part]:.0f}" for part in shown),
            ]
        )
    head = (
        f"**{Size(**case['size'])}**: floor {floor['tokens_per_s']:,.0f} tokens/s"
        f" ({floor['gflops_per_s']:,.0f} GFLOP/s), {case['rounds']} rounds"
    )
    return f"{head}\n\n{markdown(rows)}"


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %".replace("-", "−")


def memory_table(names: list[str], docs: Path) -> str:
    """Returns the table of `scripts.benchmarks.memory --json`."""
    rows = [row for name in names for row in _read(docs / FOLDER / f"{name}.json")["cases"]]
    return "\n".join([memory.HEAD, *map(memory.line, rows)])


def scoring_table(names: list[str], docs: Path) -> str:
    """Returns the table of `scripts.benchmarks.scoring --json`: short lines, and a long text."""
    rows = [
        [
            "model",
            "lines at once, ms",
            "one by one, ms",
            "times faster",
            "possible at most",
            "long text, tokens/s",
        ]
    ]
    for name in names:
        for size, parts in _read(docs / FOLDER / f"{name}.json").items():
            short, long = parts["short_lines"], parts["long_text"]
            rows.append(
                [
                    size,
                    f"{1000 * short['many_s']:,.1f}",
                    f"{1000 * short['one_by_one_s']:,.0f}",
                    f"{short['times_faster']:.1f}",
                    f"{short['times_faster_of_floor']:.0f}",
                    f"{long['score_tokens_per_s']:,.0f}",
                ]
            )
    return markdown(rows)


TABLES: dict[str, Maker] = {
    "bench": bench_table,
    "quick": quick_table,
    "memory": memory_table,
    "scoring": scoring_table,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: {error}; copy the output of a script of scripts/benchmarks/ there"
        ) from None
    return result
