"""The table that scripts/bench prints."""

from typing import Any

from scripts.benchmarks.training.case import Size
from scripts.benchmarks.training.parts import PARTS


def table(result: dict[str, Any]) -> str:
    """Returns a table of all cases, each with its floor and its arms."""
    machine = result["machine"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads, {machine['precision']},"
        f" torch {machine['torch']}"
    ]
    for case in result["cases"]:
        lines += ["", str(Size(**case["size"]))]
        lines += [f"  skipped: {case['skipped']}"] if "skipped" in case else _case_lines(case)
    return "\n".join(lines)


def _case_lines(case: dict[str, Any]) -> list[str]:
    floor = case["floor"]
    parts = [*PARTS, "other"]
    lines = [
        f"  floor: {floor['tokens_per_s']:,.0f} tokens/s; its products take"
        f" {floor['ms_per_window']:.2f} ms a window at {floor['gflops_per_s']:,.0f} GFLOP/s,"
        f" {floor['ms_at_best']:.2f} at the {floor['best_gflops_per_s']:,.0f} of large ones;",
        f"  an ordinary step moves at least {floor['moved_mb']:,.0f} MB,"
        f" {floor['ms_moving']:.2f} ms at {floor['copy_gb_per_s']:,.0f} GB/s",
        f"  median of {case['rounds']} rounds (and quartiles); shares of a step in %:",
        "  "
        + " " * 22
        + "tokens/s"
        + "quartiles".rjust(19)
        + "of floor".rjust(10)
        + "over real (quartiles)".rjust(27)
        + "MB".rjust(8)
        + "".join(part[:8].rjust(9) for part in parts),
    ]
    for name, arm in case["arms"].items():
        low, high = arm["tokens_per_s_quartiles"]
        over = ""
        if "over_real" in arm:
            least, most = arm["over_real_quartiles"]
            over = f"{arm['over_real']:+.1%} ({least:+.1%} … {most:+.1%})"
        held = f"{arm['peak_memory_mb']:,.0f}"
        lines.append(
            f"  {name:22}{arm['tokens_per_s']:8,.0f}"
            + f"{low:,.0f}–{high:,.0f}".rjust(19)
            + f"{arm['of_floor']:10.0%}{over:>27}{held:>8}"
            + "".join(f"{100 * arm['shares'][part]:9.1f}" for part in parts)
        )
    return lines
