"""The runs of a comparison, in the folders `OUT/runs/<variant>-seed<seed>`.

Each is an ordinary run of `sglm train`. Beside it are a record of its cost
(`<variant>-seed<seed>.json`) and its progress lines (`….log`). Comparisons are merged by copying
their `runs/` folders together.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sglm.compare.grid import Cell
from sglm.compare.variants import VARIANTS, configure
from sglm.config import Config
from sglm.errors import THEN_AGAIN, InputError
from sglm.storage.durable import replace_text
from sglm.storage.untrusted import is_amount, parse_json, read_bounded, read_json
from sglm.text.store import TokenStore
from sglm.train.log.metrics import LARGEST_METRICS_BYTES
from sglm.train.run_folder import RunFolder

# The files that a comparison writes beside its runs.
RESULT_FILES = ("results.json", "table.md", "curves.png")
_RUN_NAME = re.compile(r"(?P<variant>.+)-seed(?P<seed>0|[1-9][0-9]*)")

_DIVERGED = 1e15


@dataclass(frozen=True, kw_only=True)
class Record:
    """The cost of a run.

    Attributes:
        finished: Whether the run reached its last update.
        seconds: Time of training and evaluation over all sessions; 0 until the run is finished.
        peak_memory_mb: Peak memory in 10⁶ bytes, the highest of all sessions: of the process on a
            CPU, of torch's tensors on CUDA. None: unknown.
        device, precision: Device type, and name of the precision.
        waited: Share of the time for which the main thread was ready to run but no core was free,
            in the worst session. None: unknown.
    """

    finished: bool
    seconds: float
    peak_memory_mb: float | None
    device: str
    precision: str
    waited: float | None = None

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """Reads a record; None if there is none.

        Raises:
            InputError: The record is damaged.
        """
        try:
            record = cls(**read_json(path))
            if not record.is_plausible():
                raise ValueError("a value has the wrong type or is negative")
            return record
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise _damaged(path, error, remove="it") from None

    def is_plausible(self) -> bool:
        """Whether every value has its type and no number is negative, which a file may violate."""
        peak = 0.0 if self.peak_memory_mb is None else self.peak_memory_mb
        return (
            isinstance(self.finished, bool)
            and all(map(is_amount, (self.seconds, peak, self.waited or 0.0)))
            and isinstance(self.device, str)
            and isinstance(self.precision, str)
        )

    def write(self, path: Path) -> None:
        """Writes the record durably."""
        replace_text(path, json.dumps(asdict(self)) + "\n")


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The results of a run. The lists have one entry per evaluation, the last one at its end."""

    variant: str
    seed: int
    steps: list[int]
    token_ppl: list[float]
    nll_per_token: list[float]
    seconds: float
    peak_memory_mb: float | None
    device: str
    precision: str
    waited: float | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.variant, self.seed)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The settings that all runs share.

    Attributes:
        base: The configuration with its schedule in steps, see `prepare_base`.
        store: The corpus.
        out: The folder of the comparison.
        horizon: Horizon of the variants with a long one, in steps.
    """

    base: Config
    store: TokenStore
    out: Path
    horizon: int

    @property
    def updates(self) -> int:
        """The number of updates of every run."""
        return round(sum(self.base.schedule.cycle_lengths()))

    def config(self, cell: Cell) -> Config:
        return configure(cell.variant, self.base, seed=cell.seed, horizon=self.horizon)

    def folder(self, cell: Cell) -> Path:
        return self.out / "runs" / cell.name

    def record_path(self, cell: Cell) -> Path:
        return self.out / "runs" / f"{cell.name}.json"

    def log_path(self, cell: Cell) -> Path:
        return self.out / "runs" / f"{cell.name}.log"

    def collect(self, known: Mapping[Cell, FinishedRun] | None = None) -> dict[Cell, FinishedRun]:
        """Reads all finished runs in `out`, including those of other variants or seeds.

        Args:
            known: Result of an earlier call; these runs are not read again.

        Raises:
            InputError, ConfigError: `out` holds something else, or runs of another comparison.
        """
        known = known or {}
        finished: dict[Cell, FinishedRun] = {}
        for cell in self._cells_on_disk():
            run = known[cell] if cell in known else self._read(cell)
            if run is None:
                continue
            finished[cell] = run
            first = next(other for other in finished.values() if other.variant == cell.variant)
            if run.steps != first.steps:
                folder = RunFolder(self.folder(cell))
                problem = f"its evaluations are not at the steps of seed {first.seed}"
                raise _damaged(folder.metrics, problem, remove=folder.path)
        return finished

    def _cells_on_disk(self) -> list[Cell]:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give --out a folder")
        runs = self.out / "runs"
        entries = sorted(self.out.iterdir()) if self.out.exists() else []
        if entries and not runs.is_dir():
            # A comparison that was stopped before its first run has results of no runs.
            others = [entry.name for entry in entries if entry.name not in RESULT_FILES]
            if others:
                raise _foreign(self.out, others)
        cells, foreign = [], []
        for entry in sorted(runs.iterdir()) if runs.is_dir() else []:
            if not entry.is_dir():
                continue
            match = _RUN_NAME.fullmatch(entry.name)
            if match and match["variant"] in VARIANTS:
                cells.append(Cell(match["variant"], int(match["seed"])))
            else:
                foreign.append(f"runs/{entry.name}")
        if foreign:
            raise _foreign(self.out, foreign)
        return cells

    def _read(self, cell: Cell) -> FinishedRun | None:
        """Reads a run; None if it is not finished. Raises the same errors as `collect`."""
        record = Record.read(self.record_path(cell))
        folder = RunFolder(self.folder(cell))
        if record is None or not record.finished or not folder.identity.exists():
            return None
        folder.check_same(self.config(cell), self.store)
        try:
            lines = [
                parse_json(line)
                for line in read_bounded(folder.metrics, LARGEST_METRICS_BYTES).splitlines()
            ]
            if lines[-1]["step"] != self.updates:
                raise ValueError(f"ends at step {lines[-1]['step']}, not {self.updates}")
            ppl, nll = (
                [_number(line[key]) for line in lines] for key in ("token_ppl", "nll_per_token")
            )
            steps = [int(line["step"]) for line in lines]
        except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise _damaged(folder.metrics, error, remove=folder.path) from None
        return FinishedRun(
            variant=cell.variant,
            seed=cell.seed,
            steps=steps,
            token_ppl=ppl,
            nll_per_token=nll,
            seconds=record.seconds,
            peak_memory_mb=record.peak_memory_mb,
            device=record.device,
            precision=record.precision,
            waited=record.waited,
        )


def _damaged(path: Path, problem: object, *, remove: Path | str) -> InputError:
    return InputError(f"{path}: damaged ({problem}); remove {remove}, {THEN_AGAIN}")


def _foreign(out: Path, names: Iterable[str]) -> InputError:
    shown = ", ".join(list(names)[:3])
    return InputError(
        f"{out}: holds something that is not a comparison ({shown}); give another --out"
    )


def _number(value: float | None) -> float:
    """Converts a number of `metrics.jsonl`; null or one above 10¹⁵ counts as infinite: diverged."""
    return math.inf if value is None or float(value) > _DIVERGED else float(value)
