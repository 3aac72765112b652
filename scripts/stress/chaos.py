"""Kills `sglm prep`, `train` and `compare` over and over, and compares the final results.

Every case is run once undisturbed. Then it is killed in four ways and started again until it has
finished: just before its n-th file operation, in the middle of a write after that, at a random
moment (all three in forks of this process, see `chaos_processes`), and at a random moment as a
process of its own, as a user starts it. The final output must equal that of the undisturbed run:
stores, weights, optimizers and random numbers byte by byte, metrics and curves number by number.
Right after each kill, whatever looks complete must be complete. No start may print "Traceback", and
only a killed one may fail.

    scripts/chaos [--kills 200] [--seed 0] [--what prep,train,compare] [--every-operation] [--json]
"""

import argparse
import itertools
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from scripts.stress import chaos_invariants as invariants
from scripts.stress.chaos_cases import Case, compare_case, make_text, prep_case, train_case
from scripts.stress.chaos_processes import Ending, Saboteur, Victim, forked, fresh, warm_up

# The ways to kill, and what share of the kills each of them gets.
WAYS = {"operation": 0.45, "torn write": 0.15, "moment": 0.35, "process": 0.05}
# The environment of processes that fork: a child has none of its parent's other threads.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
WHAT = ("prep", "train", "compare")
MOST_KILLS_OF_A_RUN = 6
MEMORY = "/dev/shm"
TORN_BYTES = (2, 30, 400, 5000)


class Start(NamedTuple):
    """A started process, the seconds after which it is killed, and the saboteur that ends it."""

    victim: Victim
    seconds: float | None = None
    saboteur: Saboteur | None = None


class Whole(NamedTuple):
    """The undisturbed run of a case: its output, file operations and time."""

    out: Path
    operations: int
    seconds: float


@dataclass
class Row:
    """The results of one way to kill one command."""

    what: str
    way: str
    runs: int = 0
    starts: int = 0
    kills: int = 0
    differences: int = 0
    tracebacks: int = 0
    failed_starts: int = 0
    seconds: float = 0.0


@dataclass
class Chaos:
    """One session: its folder, its random generator, and the problems found."""

    folder: Path
    dice: random.Random
    problems: list[str] = field(default_factory=list)
    folders: int = 0

    def report(self, problem: str) -> None:
        """Notes a problem, and prints it at once."""
        self.problems.append(problem)
        say(problem)

    def new_folder(self, case: Case) -> Path:
        self.folders += 1
        folder = self.folder / f"{case.what}-{self.folders:04d}"
        folder.mkdir()
        case.set_up(folder)
        return folder

    def undisturbed(self, case: Case, as_process: bool = False) -> Whole:
        """Runs a case to its end.

        Raises:
            RuntimeError: It fails without a kill.
        """
        folder, counting, started = self.new_folder(case), Saboteur(), time.monotonic()
        arguments = case.arguments(folder)
        ending = (fresh(arguments) if as_process else forked(arguments, counting)).wait()
        if ending.code != 0:
            raise RuntimeError(f"{case.what} fails undisturbed:\n{ending.output}")
        return Whole(folder / "out", counting.done(), time.monotonic() - started)

    def run(self, case: Case, way: str, at: int, whole: Whole, row: Row) -> None:
        """Kills one run as often as the way prescribes, lets it finish, and compares."""
        folder, started, before = self.new_folder(case), time.monotonic(), len(self.problems)
        row.runs += 1
        continues_at = 0
        for start in self._starts(case, way, at, whole, folder):
            ending = start.victim.wait(start.seconds)
            row.starts += 1
            finished = continues_at == invariants.latest_step(whole.out)
            left_alone = not was_killed(ending, start) and not finished
            self._check_output(ending, folder, continues_at, left_alone, row)
            if not was_killed(ending, start):
                break
            row.kills += 1
            continues_at = invariants.latest_step(folder / "out")
            for found in case.damage(folder / "out"):
                row.differences += 1
                self.report(f"{folder}: after a kill: {found}")
        again = forked(case.arguments(folder), Saboteur()).wait()
        # A prep that is killed after its last rename has already written the whole store.
        if ending.code not in (0, case.again) or again.code != case.again:
            row.failed_starts += 1
            self.report(f"{folder}: a start failed\n{ending}\n{again}")
        else:
            for found in case.differences(whole.out, folder / "out"):
                row.differences += 1
                self.report(f"{folder}: {found}")
        row.seconds += time.monotonic() - started
        if len(self.problems) == before:
            shutil.rmtree(folder)
        say(f"{case.what} ({case.name}), {way}" + f" {at}" * (at > 0) + f": kill {row.kills}")

    def _starts(self, case: Case, way: str, at: int, whole: Whole, folder: Path) -> Iterator[Start]:
        """Yields one start after the other; the last of them is not killed."""
        arguments = case.arguments(folder)
        if way == "process":
            for _ in range(2):
                yield Start(fresh(arguments), self.dice.uniform(0.2, 1.1) * whole.seconds)
        elif way == "moment":
            for _ in range(MOST_KILLS_OF_A_RUN):
                seconds = self.dice.uniform(0.0, 0.7) * whole.seconds
                yield Start(forked(arguments, Saboteur()), seconds)
        else:
            torn = (
                self.dice.randrange(self.dice.choice(TORN_BYTES)) if way == "torn write" else None
            )
            # The first start is killed, and then the start that recovers from that.
            for operation in (at, self.dice.randint(1, whole.operations // 2 + 1)):
                saboteur = Saboteur(operation, torn, spare_others=self.dice.random() < 0.5)
                yield Start(forked(arguments, saboteur), None, saboteur)
        yield Start(forked(arguments, Saboteur()))

    def _check_output(
        self, ending: Ending, folder: Path, continues_at: int, left_alone: bool, row: Row
    ) -> None:
        if "Traceback" in ending.output:
            row.tracebacks += 1
            self.report(f"{folder}: a traceback\n{ending.output}")
        announced = "continuing at step" in ending.output
        right = f"continuing at step {continues_at:,} " in ending.output
        # A start that was killed too may have ended before it printed that line.
        if continues_at and not right and (announced or left_alone):
            row.failed_starts += 1
            self.report(f"{folder}: not at step {continues_at}\n{ending.output}")


def was_killed(ending: Ending, start: Start) -> bool:
    """Returns whether a start was killed, or failed because a process of its own was killed."""
    of_its_own = start.saboteur is not None and start.saboteur.struck and ending.code == 1
    return ending.killed or (of_its_own and "ended by SIG" in ending.output)


def moments(way: str, kills: int, whole: Whole, dice: random.Random) -> Iterator[int]:
    """Yields the operations at which to kill, spread over all; 0 for ways that need none."""
    if way in ("moment", "process"):
        yield from itertools.repeat(0)
    while True:
        for index in range(kills):
            yield 1 + math.floor((index + dice.random()) / kills * whole.operations)


def kill(chaos: Chaos, cases: Sequence[Case], kills: int, every_operation: bool) -> list[Row]:
    """Kills one command `kills` times, spread over its cases and all the ways."""
    rows = {way: Row(cases[0].what, way) for way in WAYS}
    wholes = [chaos.undisturbed(case) for case in cases]
    for way, row in rows.items():
        for case, whole in zip(cases, wholes, strict=True):
            if every_operation:
                if way == "operation":
                    for at in range(1, whole.operations + 1):
                        chaos.run(case, way, at, whole, row)
                continue
            if way == "process":
                as_process = chaos.undisturbed(case, as_process=True)
                for found in case.differences(whole.out, as_process.out):
                    chaos.report(f"a fork and a process: {found}")
                whole = as_process
            wanted = row.kills + max(1, round(kills * WAYS[way] / len(cases)))
            operations = moments(way, wanted - row.kills, whole, chaos.dice)
            # A run may finish before the moment of its kill, so more runs than kills are allowed.
            for _ in range(10 + 10 * (wanted - row.kills)):
                if row.kills >= wanted:
                    break
                chaos.run(case, way, next(operations), whole, row)
    return [row for row in rows.values() if row.runs]


def make_cases(folder: Path, what: str) -> list[Case]:
    """Makes small cases of a command; writes their inputs to `folder`."""
    text, longer, store, old = (folder / name for name in ("a.txt", "b.txt", "store", "old"))
    if not text.exists():
        make_text(text, 300)
        make_text(longer, 3000)
        for source, out in ((text, store), (longer, old)):
            ending = forked(
                ["prep", str(source), "--out", str(out), "--tokenizer", "word"], Saboteur()
            ).wait()
            if ending.code != 0:
                raise RuntimeError(ending.output)
    if what == "prep":
        return [
            prep_case(longer, old, tokenizer, force)
            for tokenizer, force in (("word", False), ("sentencepiece", False), ("char", True))
        ]
    if what == "train":
        return [
            train_case(store, folder / "adjoint.toml", 'kind = "adjoint"\nevery = 3\nreach = 7'),
            train_case(store, folder / "recurrent.toml", 'kind = "recurrent"\nauxiliary = true'),
        ]
    return [compare_case(store, folder / "compare.toml")]


def table(rows: Sequence[Row]) -> str:
    """Returns a table for docs/log.md."""
    names = list(asdict(rows[0]))
    lines = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines.append(f"| {' | '.join('---' for _ in names)} |")
    totals = Row("all", "")
    for row in rows:
        for name in names[2:]:
            setattr(totals, name, getattr(totals, name) + getattr(row, name))
    for row in (*rows, totals):
        cells = [f"{v:.0f}" if isinstance(v, float) else str(v) for v in asdict(row).values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--kills", type=int, default=200, help="number of kills (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--what", default=",".join(WHAT), help="some of %(default)s")
    parser.add_argument(
        "--every-operation", action="store_true", help="one run per file operation instead"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args()
    given.what = given.what.split(",")
    if unknown := set(given.what) - set(WHAT):
        parser.error(f"--what: unknown {', '.join(sorted(unknown))}; known: {', '.join(WHAT)}")
    return given


def main() -> int:
    given = parse_arguments()
    if not ONE_THREAD.items() <= os.environ.items():  # libraries read these only once, on loading
        again = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, again, {**os.environ, **ONE_THREAD})
    started = time.monotonic()
    warm_up()
    # Files in memory outlive a killed process as files on a disk do, and are faster.
    memory = MEMORY if os.access(MEMORY, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="sglm-chaos-", dir=memory))
    chaos = Chaos(folder, random.Random(given.seed))
    rows: list[Row] = []
    for what in given.what:
        cases = make_cases(folder, what)
        rows += kill(chaos, cases, round(given.kills / len(given.what)), given.every_operation)
    seconds = round(time.monotonic() - started, 1)
    if given.json:
        facts = {
            "kills": sum(row.kills for row in rows),
            "seed": given.seed,
            "seconds": seconds,
            "rows": [asdict(row) for row in rows],
            "problems": chaos.problems,
        }
        print(json.dumps(facts))
    else:
        print(table(rows))
        print(f"\n{len(chaos.problems)} problems in {seconds:.0f} s, seed {given.seed}")
    if chaos.problems:
        say(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
