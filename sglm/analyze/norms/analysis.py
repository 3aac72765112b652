"""What weight decay does to a training: norms, effective rates, L2 in Adam's buffer, sharpness.

After Bjorck, Weinberger & Gomes 2021. The norms were logged by training; docs/analysis.md explains
how sharpness is measured.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from sglm.analyze.analysis import Part, ReportsProgress, carry_out
from sglm.analyze.norms.finding import NormsFinding
from sglm.analyze.norms.measure import ALL, DIRECTIONS, LENGTH, sharpness_by_layer
from sglm.analyze.subjects import Subject, check_length, find_subjects, store_of
from sglm.config import OptimizerConfig
from sglm.errors import InputError
from sglm.model.folder import read_card
from sglm.storage.untrusted import read_bounded
from sglm.text.store import TokenStore
from sglm.train.log.metrics import LARGEST_METRICS_BYTES
from sglm.train.run_folder import RunFolder

SPLIT = "valid"
TOKENS = 4096  # at most; the loss is the mean over them
FEWEST_TOKENS = 256
_FLOATS_PER_SECOND = 5e9  # multiply-adds of one core that has other work too


@dataclass(frozen=True, kw_only=True)
class NormsAnalysis:
    """The analysis of norms and sharpness (an `Analysis`).

    Args:
        subjects: Snapshots of all runs.
        store: Store whose validation text is read.

    Raises:
        InputError: A run logged no norms, or the text is too short.
    """

    subjects: Sequence[Subject]
    store: TokenStore
    what: str = "norms"

    def __post_init__(self) -> None:
        for run in self._runs():
            validations_with_norms(run)
        check_length(self.store, SPLIT, tokens=FEWEST_TOKENS, purpose="measurements of sharpness")

    def _runs(self) -> dict[Path, str]:
        """Returns the runs' names by their folders, in the order in which they were given."""
        return {each.run: each.name.rpartition("@")[0] for each in self.subjects}

    def _numbers(self) -> Mapping[str, Any]:
        return {"store": self.store.fingerprint, "numbers": [TOKENS, DIRECTIONS, LENGTH]}

    def memory_bytes(self) -> float:
        """Estimates the peak memory: weights, a copy, a disturbance, its direction, one pass."""
        shapes = [read_card(each.folder).model_shape() for each in self.subjects]
        return max(4.0 * (4 * each.parameters + 64 * each.vocab_size) for each in shapes)

    def parts(self) -> Sequence[Part]:
        """Returns one part for each snapshot."""
        made = []
        for subject in self.subjects:
            shape = read_card(subject.folder).model_shape()
            groups = shape.layers + 2 + (not shape.tied)
            passes = groups * (2 * DIRECTIONS + 1)
            seconds = passes * TOKENS * shape.parameters / _FLOATS_PER_SECOND
            made.append(
                Part(
                    name=subject.name,
                    compute=partial(self._sharpness, subject),
                    seconds=seconds,
                    depends_on={"model": subject.fingerprint(), **self._numbers()},
                )
            )
        return made

    def _sharpness(self, subject: Subject) -> dict[str, Any]:
        ids = np.array(self.store.ids(SPLIT)[:TOKENS], dtype=np.int64)
        return dict(sharpness_by_layer(subject.load(), ids, bos_id=self.store.bos_id))

    def finding(self, values: Mapping[str, dict[str, Any]]) -> NormsFinding:
        """See `Analysis`."""
        found = []
        for run, name in self._runs().items():
            own = [each for each in self.subjects if each.run == run]
            found.append(
                {
                    "run": name,
                    "decay": decay_of(own[0].config().optimizer),
                    "training": validations_with_norms(run),
                    "lowest_ppl": lowest_perplexity(run),
                    "snapshots": [
                        {"name": each.folder.name, "sharpness": values[each.name]} for each in own
                    ],
                }
            )
        return NormsFinding(runs=found, overall=ALL)


def decay_of(optimizer: OptimizerConfig) -> str:
    """Returns the kind and strength of a run's weight decay for the table ("early decay 0.1")."""
    if not optimizer.weight_decay:
        return "none"
    kind = "L2" if optimizer.kind == "adam" else "decay"
    when = "early " if optimizer.weight_decay_until < 1 else ""
    return f"{when}{kind} {optimizer.weight_decay:g}"


def validations_with_norms(run: Path) -> list[dict[str, Any]]:
    """Returns a run's validations that have norms: step, rate, perplexity, norms by layer.

    Raises:
        InputError: There are none, or the file is missing or damaged.
    """
    found = [line for line in _validations(run) if line["layers"]]
    if not found:
        raise InputError(
            f"{run}: logged no norms; train it again with this version of sglm, with"
            " train.log_every_steps no larger than the steps between two validations"
        )
    return found


def lowest_perplexity(run: Path) -> float:
    """Returns the lowest perplexity over all validations of a run; NaN if none was finite.

    Raises:
        InputError: The file is missing or damaged.
    """
    known = [line["token_ppl"] for line in _validations(run) if line["token_ppl"] is not None]
    return min(known, default=math.nan)


def _validations(run: Path) -> list[dict[str, Any]]:
    """Reads all validations of a run; `layers` is empty if a validation has no norms."""
    path = RunFolder(run).metrics
    if not path.exists():
        raise InputError(
            f"{run}: is not a run (no {path.name}); give a folder that `sglm train` wrote"
        )
    try:
        return [
            {
                "step": int(line["step"]),
                "lr": float(line["lr"]),
                "token_ppl": None if line["token_ppl"] is None else float(line["token_ppl"]),
                "layers": {
                    str(layer): {str(what): float(value) for what, value in norms.items()}
                    for layer, norms in (line.get("norms") or {}).items()
                },
            }
            for line in map(json.loads, read_bounded(path, LARGEST_METRICS_BYTES).splitlines())
        ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); train the run again") from None


def norms(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    report: ReportsProgress | None = None,
) -> NormsFinding:
    """Analyses what weight decay did to the training of runs: see docs/analysis.md.

    Args:
        runs: Folders that `sglm train` wrote.
        data: Token store whose validation text is read. None: the store of the first run.
        out: Folder for `norms.json`, `norms.png` and what is needed to continue. None: nothing is
            written.
        report: Function that is called before every part and at the end.

    Raises:
        InputError: A folder is not a run with snapshots and norms, the text is too short, or too
            little memory is free.
    """
    return cast(NormsFinding, carry_out(norms_analysis(runs, data=data), out, report=report))


def norms_analysis(
    runs: Sequence[str | os.PathLike[str]], *, data: str | os.PathLike[str] | None = None
) -> NormsAnalysis:
    """Prepares the analysis that `norms` carries out; see there."""
    subjects = find_subjects(runs, snapshots=True)
    return NormsAnalysis(subjects=subjects, store=store_of(subjects, data))
