"""Runs parts of a visit; packs what travels; sums up. `scripts/gpu` has the examples."""

import argparse
import os
import re
import signal
import sys
import time
from pathlib import Path

from scripts import ROOT
from scripts.gpu_visit.pack import FOLDER, PYTHON, pack
from scripts.gpu_visit.results import Results
from scripts.gpu_visit.summary import summarize
from scripts.gpu_visit.supervise import Limits, run_part
from scripts.gpu_visit.visits import PARTS, VISIT_SECONDS, VISITS
from sglm.errors import InputError, SglmError

_REHEARSED = Limits(part=60, cell=30)


def listing() -> str:
    """The parts and the visits."""
    lines = [f"{name:14}{each.limits.part:5.0f} s  {each.sentence}" for name, each in PARTS.items()]
    lines += [f"{name:14}{VISIT_SECONDS:5.0f} s  {', '.join(of)}" for name, of in VISITS.items()]
    return "\n".join(lines)


def parts_of(names: list[str]) -> list[str]:
    """Visits replaced by their parts, none twice.

    Raises:
        InputError: an unknown name.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in PARTS and name not in VISITS:
            raise InputError(f"no part or visit {name!r}; scripts/gpu --list names them")
        found |= dict.fromkeys(VISITS.get(name, [name]))
    return list(found)


def visit(arguments: argparse.Namespace) -> int:
    """Runs the parts one after the other.

    Returns:
        1 where no cell of them was measured; in a rehearsal, where one failed.

    Raises:
        InputError: an unknown name; a pattern that is none; no GPU.
    """
    deadline = time.monotonic() + arguments.seconds  # torch is imported below
    parts, rehearsing = parts_of(arguments.names), arguments.rehearse
    _check_pattern(arguments.only)
    if not rehearsing:
        _need_a_gpu()
    out = arguments.out or Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    out = out / "rehearsal" if rehearsing else out
    earlier = [] if rehearsing else sorted(FOLDER.glob("*.jsonl"))
    results = Results(out, earlier)
    told = {
        "rehearsing": rehearsing,
        "data": _there(arguments.data, FOLDER / "ptb") if not rehearsing else None,
        "other": _there(arguments.other, FOLDER / "other"),
        "only": arguments.only,
        "work": str((arguments.work or _work(out, rehearsing)).absolute()),
    }
    for name in parts:
        entry, left = PARTS[name], deadline - time.monotonic()
        if left < 1:
            results.log(f"{name}: not begun, the visit's time is up")
            continue
        limits = _REHEARSED if rehearsing else entry.limits
        limits = Limits(part=min(limits.part, left), cell=limits.cell)
        results.log(f"{name}: {entry.sentence}; {limits.part:.0f} s at most")
        run_part(name, {**told, "environment": entry.environment}, limits, results)
    of_these = [record for (part, _), record in results.cells.items() if part in parts]
    failed = sum("error" in record for record in of_these)
    results.log(f"{len(of_these) - failed} cells in {results.path}; {failed} failed")
    return 1 if failed == len(of_these) or (rehearsing and failed) else 0


def _work(out: Path, rehearsing: bool) -> Path:
    """Not in $OUT: only a few files come back from there."""
    return out / "work" if rehearsing else ROOT / "build" / "gpu" / "work"


def _check_pattern(only: str) -> None:
    try:
        re.compile(only)
    except re.error as error:
        raise InputError(f"--only {only!r} is no regular expression: {error}") from None


def _need_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError("torch sees no GPU here; --rehearse runs the same code on the CPU")


def _there(given: Path | None, usual: Path) -> str | None:
    """An absolute path, for the processes of the parts; None where there is nothing."""
    path = given or usual
    if given is not None and not path.exists():
        raise InputError(f"{given}: no such folder")
    return str(path.absolute()) if path.exists() else None


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu",
        description=__doc__,
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="parts or visits; or pack; or summary FILE...")
    add("--list", action="store_true", help="the parts and visits")
    add("--rehearse", action="store_true", help="on the CPU, with tiny sizes")
    add("--out", type=Path, help="folder of visit.jsonl and visit.log; else $OUT, or build/gpu")
    add("--work", type=Path, help="folder of what is not brought back; else build/gpu/work")
    add("--data", type=Path, help="a token store of Penn Treebank; else .gpu/ptb")
    add("--other", type=Path, help="somebody else's code with an arm.py; else .gpu/other")
    add("--only", default="", metavar="REGEX", help="cells in whose names it is found")
    add("--seconds", type=float, default=VISIT_SECONDS, help="of all parts together")
    add("--python", default=PYTHON, help="pack: the other machine's version")
    add("--name", help="summary: of the machine, as its file in docs/benchmarks is called")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> int:
    """
    Raises:
        SglmError: what was asked for cannot be had.
    """
    first, *rest = arguments.names or [""]
    if arguments.list or not first:
        print(listing())
        return 0
    if first == "pack":
        if arguments.data is None:
            raise InputError("scripts/gpu pack needs --data, a token store made by sglm prep")
        print(pack(arguments.data, other=arguments.other, python=arguments.python))
        return 0
    if first == "summary":
        if not rest or not arguments.name:
            raise InputError("write scripts/gpu summary FILE... --name MACHINE")
        print(summarize([Path(each) for each in rest], arguments.name, ROOT / "docs"))
        return 0
    return visit(arguments)


def main() -> int:
    """Exit code: 1 where nothing could be measured, 2 where what was asked for cannot be had."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return run(read_arguments())
    except SglmError as error:
        print(f"scripts/gpu: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
