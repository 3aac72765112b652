"""The runs of a comparison and where they lie: `OUT/runs/<variant>-seed<seed>`.

Each is an ordinary run of `sglm train`. Beside it lie a record of what it cost
(`<variant>-seed<seed>.json`) and what it said while it trained (`….log`). Whoever copies `runs/`
folders together merges comparisons.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from sglm.compare.variants import VARIANTS, configure
from sglm.config import Config
from sglm.errors import InputError
from sglm.storage.durable import replace_text
from sglm.storage.untrusted import parse_json, read_bounded, read_json
from sglm.text.store import TokenStore
from sglm.train.run_folder import RunFolder

_RUN_NAME = re.compile(r"(?P<variant>.+)-seed(?P<seed>0|[1-9][0-9]*)")

_DIVERGED = 1e15
_LARGEST_METRICS_BYTES = 1 << 28  # a million evaluations


class Cell(NamedTuple):
    """One cell of the grid: one run."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.variant} seed {self.seed}"


def grid(variants: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All runs, seed by seed: a grid that is stopped early has whole pairs."""
    return [Cell(variant, seed) for seed in seeds for variant in variants]


def shard_of(cells: Sequence[Cell], shard: int, shards: int) -> list[Cell]:
    """The cells that shard 1, 2 … `shards` runs, in their order.

    Dealt out variant by variant, so that shards differ by one run at most, in all and of each
    variant; with as many shards as seeds, each has whole seeds.
    """
    variants = list(dict.fromkeys(cell.variant for cell in cells))
    dealt = sorted(cells, key=lambda cell: variants.index(cell.variant))
    mine = set(dealt[shard - 1 :: shards])
    return [cell for cell in cells if cell in mine]


@dataclass(frozen=True)
class Record:
    """What a run cost.

    Attributes:
        finished: it reached its last update.
        seconds: of training and evaluation, over all sessions; 0 until it is finished.
        peak_memory_mb: 10⁶ bytes, of the greediest session: of the process on a CPU, of torch's
            tensors on CUDA; None where it is not known.
        device, precision: where, and in what types.
    """

    finished: bool
    seconds: float
    peak_memory_mb: float | None
    device: str
    precision: str

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """None where there is none.

        Raises:
            InputError: it is damaged.
        """
        try:
            record = cls(**read_json(path))
            if not record.is_plausible():
                raise ValueError("of other types, or below zero")
            return record
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: damaged ({error}); remove it, then run the same command again"
            ) from None

    def is_plausible(self) -> bool:
        """Whether every value is of its type, as it need not be after reading."""
        peak = 0.0 if self.peak_memory_mb is None else self.peak_memory_mb
        return (
            isinstance(self.finished, bool)
            and all(type(value) in (int, float) and value >= 0 for value in (self.seconds, peak))
            and isinstance(self.device, str)
            and isinstance(self.precision, str)
        )

    def write(self, path: Path) -> None:
        """Durably."""
        replace_text(path, json.dumps(asdict(self)) + "\n")


@dataclass(frozen=True)
class FinishedRun:
    """What a run came to. The lists go over its evaluations, the last one at its end."""

    variant: str
    seed: int
    steps: list[int]
    token_ppl: list[float]
    nll_per_token: list[float]
    seconds: float
    peak_memory_mb: float | None
    device: str
    precision: str


@dataclass(frozen=True)
class Comparison:
    """What all runs share.

    Attributes:
        base: the configuration with its schedule in steps, see `prepare_base`.
        store: the corpus.
        out: where it all goes.
        horizon: of the variants with a long one, in steps.
    """

    base: Config
    store: TokenStore
    out: Path
    horizon: int

    @property
    def updates(self) -> int:
        """That every run makes."""
        return round(sum(self.base.schedule.cycle_lengths()))

    def config(self, cell: Cell) -> Config:
        return configure(cell.variant, self.base, cell.seed, self.horizon)

    def folder(self, cell: Cell) -> Path:
        return self.out / "runs" / cell.name

    def record_path(self, cell: Cell) -> Path:
        return self.out / "runs" / f"{cell.name}.json"

    def log_path(self, cell: Cell) -> Path:
        return self.out / "runs" / f"{cell.name}.log"

    def collect(self) -> dict[Cell, FinishedRun]:
        """All finished runs in `out`, also those of earlier calls with other variants or seeds.

        Raises:
            InputError, ConfigError: `out` holds something else, or runs of another comparison.
        """
        found = {}
        for cell in self._cells_on_disk():
            record = Record.read(self.record_path(cell))
            folder = RunFolder(self.folder(cell))
            if record is None or not record.finished or not folder.identity.exists():
                continue
            folder.check_same(self.config(cell), self.store)
            found[cell] = run = self._read(cell, folder, record)
            first = next(other for other in found.values() if other.variant == cell.variant)
            if run.steps != first.steps:
                raise InputError(
                    f"{folder.metrics}: damaged (its evaluations are not at the steps of seed"
                    f" {first.seed}); remove {folder.path}, then run the same command again"
                )
        return found

    def _cells_on_disk(self) -> list[Cell]:
        if self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; give --out a folder")
        runs = self.out / "runs"
        entries = sorted(self.out.iterdir()) if self.out.exists() else []
        if entries and not runs.is_dir():
            raise _foreign(self.out, (entry.name for entry in entries))
        cells, foreign = [], []
        for entry in sorted(runs.iterdir()) if entries else []:
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

    def _read(self, cell: Cell, folder: RunFolder, record: Record) -> FinishedRun:
        try:
            lines = [
                parse_json(line)
                for line in read_bounded(folder.metrics, _LARGEST_METRICS_BYTES).splitlines()
            ]
            if lines[-1]["step"] != self.updates:
                raise ValueError(f"ends at step {lines[-1]['step']}, not {self.updates}")
            ppl, nll = (
                [_number(line[key]) for line in lines] for key in ("token_ppl", "nll_per_token")
            )
            steps = [int(line["step"]) for line in lines]
        except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
            raise InputError(
                f"{folder.metrics}: damaged ({error});"
                f" remove {folder.path}, then run the same command again"
            ) from None
        return FinishedRun(
            *cell,
            steps,
            ppl,
            nll,
            record.seconds,
            record.peak_memory_mb,
            record.device,
            record.precision,
        )


def _foreign(out: Path, names: Iterable[str]) -> InputError:
    shown = ", ".join(list(names)[:3])
    return InputError(
        f"{out}: holds something that is not a comparison ({shown}); give another --out"
    )


def _number(value: float | None) -> float:
    """As it was written down; what has grown beyond all use counts as infinite."""
    return math.inf if value is None or float(value) > _DIVERGED else float(value)
