"""Runs parts of a visit, packs files for another machine, or sums up; examples: `scripts/gpu`."""

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
    """Returns a list of the parts and the visits, with their seconds."""
    lines = [f"{name:14}{each.limits.part:5.0f} s  {each.sentence}" for name, each in PARTS.items()]
    lines += [f"{name:14}{VISIT_SECONDS:5.0f} s  {', '.join(of)}" for name, of in VISITS.items()]
    return "\n".join(lines)


def parts_of(names: list[str]) -> list[str]:
    """Returns the names of parts, with visits replaced by their parts, each part once.

    Raises:
        InputError: A name is unknown.
    """
    found: dict[str, None] = {}
    for name in names:
        if name not in PARTS and name not in VISITS:
            raise InputError(f"no part or visit {name!r}; scripts/gpu --list lists them")
        found |= dict.fromkeys(VISITS.get(name, [name]))
    return list(found)


def visit(arguments: argparse.Namespace) -> int:
    """Runs the parts one after the other.

    Returns:
        The exit code: 1 if none of their cells was measured or, in a rehearsal, if one failed.

    Raises:
        InputError: A name is unknown, the pattern is invalid, or there is no GPU.
    """
    deadline = time.monotonic() + arguments.seconds  # before torch is imported, which takes seconds
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
    """Returns the folder for runs: not in $OUT, from which only a few files are brought back."""
    return out / "work" if rehearsing else ROOT / "build" / "gpu" / "work"


def _check_pattern(only: str) -> None:
    try:
        re.compile(only)
    except re.error as error:
        raise InputError(f"--only {only!r} is not a regular expression: {error}") from None


def _need_a_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise InputError("torch sees no GPU here; --rehearse runs the same code on the CPU")


def _there(given: Path | None, usual: Path) -> str | None:
    """Returns an absolute path for the processes of the parts; None if the usual one is missing."""
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
    add("--list", action="store_true", help="list the parts and visits")
    add("--rehearse", action="store_true", help="run on the CPU, with tiny sizes")
    add("--out", type=Path, help="folder of visit.jsonl and visit.log (default $OUT, or build/gpu)")
    add("--work", type=Path, help="folder of runs, not brought back (default build/gpu/work)")
    add("--data", type=Path, help="a token store of Penn Treebank (default .gpu/ptb)")
    add("--other", type=Path, help="another project's code with an arm.py (default .gpu/other)")
    add("--only", default="", metavar="REGEX", help="only cells whose names match")
    add("--seconds", type=float, default=VISIT_SECONDS, help="limit of all parts together")
    add("--python", default=PYTHON, help="pack: Python version of the other machine")
    add("--name", help="summary: name of the machine, for NAME-gpu.json in docs/benchmarks")
    return parser.parse_args()


def run(arguments: argparse.Namespace) -> int:
    """Runs what the arguments request and returns the exit code.

    Raises:
        SglmError: The request cannot be met.
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
    """Returns the exit code: 1 if nothing could be measured, 2 for a request that is invalid."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return run(read_arguments())
    except SglmError as error:
        print(f"scripts/gpu: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
