"""Presents `results.json` to people: as a table, and as plain sentences on what it shows."""

import textwrap
from typing import Any

from sglm.compare.variants import BASELINE, CEILING

_MINUS = "−"
_TERMINAL_COLUMNS = 80


def table(results: dict[str, Any]) -> str:
    """Returns the table and the sentences as Markdown."""
    variants = results["variants"]
    if not variants:
        return "No run is finished yet."
    with_gap = CEILING in variants
    digits = _digits(variants)
    header = ["variant", "seeds", "perplexity", f"difference from {BASELINE} (95 % CI)"]
    header += ["gap closed"] if with_gap else []
    header += ["time", "peak memory"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for name, facts in variants.items():
        row = [name, str(len(facts["seeds"])), _spread(facts, digits), _difference(facts, digits)]
        if with_gap:
            row.append(_share(facts["gap_closed"]))
        peak_mb = facts["peak_memory_mb"]
        row += [_time(facts), "–" if peak_mb is None else f"{peak_mb:,.0f} MB"]
        rows.append(row)
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["| " + " | ".join(_pad(row, widths)) + " |" for row in rows]
    title = f"Validation perplexity per token after {results['updates']:,} updates."
    missing = [f"{run['variant']} seed {run['seed']}" for run in results.get("missing", ())]
    unfinished = [f"Not finished: {', '.join(missing)}."] if missing else []
    return "\n".join([title, "", *lines, "", in_words(results), *unfinished])


def terminal_table(results: dict[str, Any]) -> str:
    """Returns the same for a terminal of 80 columns: a narrower table, and wrapped sentences."""
    variants = results["variants"]
    if not variants:
        return table(results)
    digits = _digits(variants)
    rows = [["", "n", "perplexity", f"over {BASELINE} (95 % CI)", "gap", "time", "MB"]]
    for name, facts in variants.items():
        ratio, peak_mb = facts["seconds_ratio"], facts["peak_memory_mb"]
        row = [name, str(len(facts["seeds"])), _spread(facts, digits), _difference(facts, digits)]
        row += [_share(facts["gap_closed"])]
        row += [_time(facts) if ratio is None else f"×{ratio:.2f}"]
        rows.append([*row, "–" if peak_mb is None else f"{peak_mb:,.0f}"])
    counts = {len(facts["seeds"]) for facts in variants.values()}
    left_out = {"n"} if len(counts) == 1 else set()
    left_out |= set() if CEILING in variants else {"gap"}
    rows = [
        [cell for cell, heading in zip(row, rows[0], strict=True) if heading not in left_out]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    space = "  " if sum(widths) + 2 * (len(widths) - 1) <= _TERMINAL_COLUMNS else " "
    lines = [space.join(_aligned(row, widths)).rstrip() for row in rows]
    each = f", {counts.pop()} seeds each" if len(counts) == 1 else "; n seeds"
    title = f"Validation perplexity per token after {results['updates']:,} updates{each}."
    sentences = [
        textwrap.fill(sentence, _TERMINAL_COLUMNS, break_on_hyphens=False)
        for sentence in in_words(results).splitlines()
    ]
    return "\n".join([title, "", *lines, "", *sentences])


def in_words(results: dict[str, Any]) -> str:
    """Returns sentences on what helped, what harmed, and what made no difference beyond chance.

    A difference counts only if its confidence interval excludes 0, so never with a single seed.
    """
    variants = results["variants"]
    digits = _digits(variants)
    if BASELINE not in variants:
        return f"Gains are differences from {BASELINE}, which has not finished a run yet."
    others = {name: facts for name, facts in variants.items() if name != BASELINE}
    groups: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for name, facts in others.items():
        groups[_verdict(facts)].append(f"{name}{_evidence(facts, digits)}")
    sentences = [
        f"{opening}: {'; '.join(groups[verdict])}."
        for verdict, opening in _VERDICTS.items()
        if groups[verdict]
    ]
    sentences += [
        _about_controls(name, facts["controls"], digits)
        for name, facts in others.items()
        if _verdict(facts) == "lower" and facts["controls"]
    ]
    for name, facts in others.items():
        for one, of_one, other, of_other in (
            (name, facts["seeds"], BASELINE, variants[BASELINE]["seeds"]),
            (BASELINE, variants[BASELINE]["seeds"], name, facts["seeds"]),
        ):
            missing = [str(seed) for seed in of_other if seed not in of_one]
            if missing and facts["diff_mean"] is not None:
                sentences.append(
                    f"{one} has no run for {other}'s seeds {', '.join(missing)}: the difference of"
                    f" {name} is over the other seeds."
                )
    if CEILING in variants and not groups["lower"]:
        exact = f"the exact gradient over {results['horizon']} steps ({CEILING})"
        sentences += {
            "none": [f"No gain is seen from {exact}, so none is expected from a synthetic one."],
            "higher": [f"Here {exact} harms, so a synthetic one has nothing to gain."],
        }.get(_verdict(variants[CEILING]), [])
    return "\n".join(sentences)


_VERDICTS = {
    "lower": f"Better than {BASELINE}",
    "higher": f"Worse than {BASELINE}",
    "none": f"No difference from {BASELINE} beyond the spread over seeds",
    "diverged": "Diverged",
    "unknown": "Cannot be told from chance (this needs two seeds that did not diverge, also of"
    f" {BASELINE})",
}


def _verdict(facts: dict[str, Any]) -> str:
    interval = facts["diff_ci95"]
    if interval is None:
        return "diverged" if None in facts.get("token_ppl", []) else "unknown"
    low, high = interval
    return "lower" if high < 0 else "higher" if low > 0 else "none"


def _evidence(facts: dict[str, Any], digits: int) -> str:
    """Returns the size of a difference, and its confidence interval."""
    mean, interval = facts["diff_mean"], facts["diff_ci95"]
    if _verdict(facts) == "diverged":
        return f" with {facts['token_ppl'].count(None)} of {len(facts['token_ppl'])} seeds"
    if interval is None:
        return ""
    if _verdict(facts) == "none":
        return f" ({_interval(interval, digits)})"
    return f" by {abs(mean):.{digits}f} ({_interval(interval, digits)})"


def _about_controls(name: str, controls: dict[str, Any], digits: int) -> str:
    """Returns a sentence on whether a gain over the baseline is also one over the controls."""
    phrases = []
    for other, facts in controls.items():
        evidence = _evidence(facts, digits)
        phrases.append(
            {
                "lower": f"better than {other}{evidence}",
                "higher": f"worse than {other}{evidence}",
                "none": f"no different from {other}{evidence}",
                "unknown": f"not distinguishable from {other}",
            }[_verdict(facts)]
        )
    return f"Against its controls, {name} is {'; '.join(phrases)}."


def _digits(variants: dict[str, Any]) -> int:
    """Returns the number of decimals: perplexities of characters differ by little."""
    means = [facts["token_ppl_mean"] for facts in variants.values()]
    return 2 if min((mean for mean in means if mean is not None), default=100.0) >= 10 else 4


def _spread(facts: dict[str, Any], digits: int) -> str:
    mean, sd = facts["token_ppl_mean"], facts["token_ppl_sd"]
    if mean is None:
        return "diverged"
    return f"{mean:,.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def _difference(facts: dict[str, Any], digits: int) -> str:
    mean, interval = facts["diff_mean"], facts["diff_ci95"]
    if mean is None:
        return "–"
    shown = _signed(mean, digits)
    return shown if interval is None else f"{shown} ({_interval(interval, digits, name=False)})"


def _interval(interval: list[float], digits: int, name: bool = True) -> str:
    low, high = (_signed(value, digits) for value in interval)
    return f"{'95 % CI ' if name else ''}{low} … {high}"


def _signed(value: float, digits: int, plus: bool = True) -> str:
    return f"{value:{'+' if plus else ''}.{digits}f}".replace("-", _MINUS)


def _time(facts: dict[str, Any]) -> str:
    seconds, ratio = facts["seconds_mean"], facts["seconds_ratio"]
    shown = f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return shown + ("" if ratio is None else f" (×{ratio:.2f})")


def _share(share: float | None) -> str:
    return "–" if share is None else _signed(100 * share, 0, plus=False) + " %"


def _pad(row: list[str], widths: list[int]) -> list[str]:
    if row[1] == "---:":
        return ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return _aligned(row, widths)


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    return [
        row[0].ljust(widths[0]),
        *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
    ]
