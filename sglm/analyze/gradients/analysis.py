"""The analysis `gradients`: variance, bias and worth of the gradients that a run follows.

Ilyas et al. (2020) asked the same of deep policy gradients. The reference is the gradient over a
long horizon, averaged over thousands of windows; docs/analysis.md defines the comparisons.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple, cast

import torch

from sglm.analyze.analysis import Part, ReportsProgress, carry_out
from sglm.analyze.gradients.finding import GradientsFinding
from sglm.analyze.gradients.measure import describe_sums, sum_gradients
from sglm.analyze.gradients.values import compare_values, value_steps
from sglm.analyze.reading import (
    LONG_REACH,
    WARM_UP,
    estimates,
    future_state_gradients,
    read,
    weight_gradients,
)
from sglm.analyze.subjects import (
    TRAINING_SPLIT,
    Subject,
    check_length,
    find_subjects,
    lanes_of,
    store_of,
)
from sglm.analyze.trained import Trained, load_trained, trained_fingerprint
from sglm.config import Config
from sglm.dni.critic import CriticEstimator
from sglm.errors import InputError
from sglm.model.folder import read_card
from sglm.model.language_model import LSTMLanguageModel
from sglm.runtime.process import denormals_as_zero
from sglm.text.batcher import ComingText
from sglm.text.store import TokenStore
from sglm.train.build import lookahead_steps, stretch_windows

PARTS = 16  # M, parts of the text: independent estimates from which the bootstrap draws
DEFAULT_WINDOWS = 5_000
_FEWEST_WINDOWS = 2
_SERIES = (1, 2, 5)


class ReadingExtent(NamedTuple):
    """The extent of the text that is read for one run.

    Attributes:
        batch: B, the number of lanes of a batch.
        window: T, the number of steps of a window.
        windows: N, the number of windows of each lane.
        ahead: Number of steps that must follow the last window.
    """

    batch: int
    window: int
    windows: int
    ahead: int

    @property
    def lanes(self) -> int:
        return PARTS * self.batch

    @property
    def steps(self) -> int:
        return WARM_UP + self.windows * self.window + self.ahead


@dataclass(frozen=True, kw_only=True)
class GradientsAnalysis:
    """Variance, bias and worth of gradients (an `Analysis`).

    Args:
        subjects: Models that lie in runs.
        store: The store whose training text is read.
        windows: Number of windows to average over, rounded up so that every lane reads equally
            many. None: `DEFAULT_WINDOWS`, or as many as the text has.
        reach: Number of steps past a window's end that the long horizon covers.

    Raises:
        InputError: `windows` or `reach` is less than 1, a model lies in no run, or the text is too
            short.
    """

    subjects: Sequence[Subject]
    store: TokenStore
    windows: int | None = None
    reach: int = LONG_REACH
    what: str = "gradients"

    def __post_init__(self) -> None:
        for name in ("windows", "reach"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} = {value}: must be 1 at least")
        for subject in self.subjects:
            extent = self.extent(subject.config())
            purpose = (
                f"{extent.lanes} lanes of {extent.steps:,} steps for {subject.name} ({PARTS} times"
                " its train.batch, so that a gradient's noise can be measured)"
            )
            check_length(
                self.store, TRAINING_SPLIT, tokens=extent.lanes * extent.steps, purpose=purpose
            )

    @property
    def reaches(self) -> list[int]:
        """The reaches that are measured: 1, 2, 5, 10, 20, … up to the long horizon's."""
        series = [base * 10**power for power in range(10) for base in _SERIES]
        return [*(each for each in series if each < self.reach), self.reach]

    def extent(self, config: Config) -> ReadingExtent:
        """Returns the extent of the text that is read for a run with this configuration."""
        batch, window = config.train.batch, config.train.window
        values = value_steps(window) if config.synthesizer.kind == "critic" else 0
        ahead = max(self.reach, lookahead_steps(config) or 0, values)
        lanes = PARTS * batch
        # Whole stretches, because an estimate depends on its window's place in the stretch.
        stretch = 1 if config.schedule.mode == "real" else stretch_windows(config)
        fewest = -(-(self.windows or DEFAULT_WINDOWS) // lanes)
        wanted = -(-fewest // stretch) * stretch
        fit = (len(self.store.ids(TRAINING_SPLIT)) // lanes - WARM_UP - ahead) // window
        if wanted > fit:  # as many as the text has, but at least the number that was asked for
            most = fit // stretch * stretch or fit
            wanted = max(_FEWEST_WINDOWS if self.windows is None else fewest, most)
        return ReadingExtent(batch, window, wanted, ahead)

    def _settings(self, subject: Subject) -> Mapping[str, Any]:
        return {
            "run": [subject.name, trained_fingerprint(subject)],
            "store": self.store.fingerprint,
            "plan": [*self.extent(subject.config())],
            "reach": self.reach,
        }

    def memory_bytes(self) -> float:
        """See `Analysis`: of the largest run, sums of gradients, the reading, and one pass."""
        most = 0.0
        for subject in self.subjects:
            shape = read_card(subject.folder).model_shape()
            extent = self.extent(subject.config())
            sums = (PARTS + 2) * (2 + len(self.reaches)) * sum(shape.layer_weights)
            last, units = shape.widths[-1], sum(shape.widths)
            text = extent.steps * extent.lanes * (2 * last + 4)
            text += extent.windows * extent.lanes * 3 * shape.state_size
            ahead = min(16, extent.windows) * extent.batch * self.reach * 20 * units
            most = max(most, 4 * (sums + text + ahead + 8 * shape.parameters))
        return most

    def parts(self) -> Sequence[Part]:
        """See `Analysis`: one part for each model."""
        return [
            Part(
                name=subject.name,
                compute=partial(self._measure, subject),
                seconds=self._seconds[subject.name],
                depends_on=self._settings(subject),
            )
            for subject in self.subjects
        ]

    def finding(self, values: Mapping[str, dict[str, Any]]) -> GradientsFinding:
        """See `Analysis`."""
        return GradientsFinding(runs=[values[subject.name] for subject in self.subjects])

    @cached_property
    def _seconds(self) -> dict[str, float]:
        known: dict[tuple[Any, ...], float] = {}
        found = {}
        for subject in self.subjects:
            shape, extent = read_card(subject.folder).model_shape(), self.extent(subject.config())
            if (shape, extent) not in known:
                model = LSTMLanguageModel(shape).eval()
                known[shape, extent] = _seconds_of(model, extent, self.reaches)
            found[subject.name] = known[shape, extent]
        return found

    def _measure(self, subject: Subject) -> dict[str, Any]:
        trained = load_trained(subject)
        extent = self.extent(trained.config)
        text = lanes_of(self.store, extent.lanes, extent.steps)
        with denormals_as_zero():
            found = measure_gradients(trained, text, extent=extent, reaches=self.reaches)
        return {
            "run": subject.name,
            "window": extent.window,
            "batch": extent.batch,
            "estimates": PARTS,
            "windows": extent.windows * extent.lanes,
            "missing": trained.missing,
            **found,
        }


def measure_gradients(
    trained: Trained, text: ComingText, *, extent: ReadingExtent, reaches: Sequence[int]
) -> dict[str, Any]:
    """Measures one model on a text.

    Args:
        trained: The model, and its estimator if it has one.
        text: `extent.steps` steps of `extent.lanes` lanes.
        extent: The extent of the text.
        reaches: The reaches of the exact gradients, ascending.

    Returns:
        The numbers of `describe_sums`, and `values`: those of `compare_values` for a critic, else
        None.
    """
    model, estimator = trained.model, trained.estimator
    reading = read(model, text, skipped=WARM_UP, window=extent.window, windows=extent.windows)
    synthetic_NLS = None
    if estimator is not None:
        synthetic_NLS = estimates(
            model, reading, estimator, stretch=trained.stretch, lookahead=trained.lookahead
        )
    sums = sum_gradients(model, reading, reaches, synthetic_NLS=synthetic_NLS, lanes=extent.batch)
    values = None
    if isinstance(estimator, CriticEstimator):
        values = compare_values(model, reading, estimator, reaches=reaches)
    return {**describe_sums(sums, extent.window), "values": values}


def _seconds_of(model: LSTMLanguageModel, extent: ReadingExtent, reaches: Sequence[int]) -> float:
    """Estimates the seconds of a measurement by timing one batch, forward and backward."""
    pieces = 4
    ids = torch.zeros(pieces * extent.window + extent.ahead + 1, extent.batch, dtype=torch.int64)
    windows, lanes = range(pieces - 1), slice(0, extent.batch)
    with denormals_as_zero():
        for _ in ("cold", "timed"):  # the first pass takes many times as long as the others
            start = time.perf_counter()
            reading = read(
                model,
                ComingText(ids[:-1], ids[1:]),
                skipped=0,
                window=extent.window,
                windows=pieces,
            )
            read_in = time.perf_counter()
            after_KLS = future_state_gradients(
                model, reading, reaches, windows=windows, lanes=lanes
            )
            weight_gradients(model, reading, after_KLS, windows=windows, lanes=lanes)
            end = time.perf_counter()
    steps = extent.steps * PARTS / len(reading.inputs_CL)
    return (read_in - start) * steps + (end - read_in) * PARTS * extent.windows / len(windows)


def gradients(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    windows: int | None = None,
    reach: int = LONG_REACH,
    report: ReportsProgress | None = None,
) -> GradientsFinding:
    """Measures variance, bias and worth of the gradients that runs follow (docs/analysis.md).

    Args:
        runs: Folders that `sglm train` wrote.
        data: A token store whose training text is read. None: the store of the first run.
        out: A folder for `gradients.json`, `gradients.png` and the parts from which the same call
            continues. None: nothing is written.
        snapshots: Whether to analyse the models at the ends of cycles, which have no synthesizer,
            instead of those of the newest checkpoints.
        windows: Number of windows to average over. None: 5,000, or as many as the text has.
        reach: Number of steps past a window's end that the long horizon covers.
        report: Called before every part and at the end.

    Raises:
        InputError: A folder is not a run, an argument is out of range, the text is too short,
            memory is too small, or `out` is not writable.
    """
    analysis = gradients_analysis(
        runs, data=data, snapshots=snapshots, windows=windows, reach=reach
    )
    return cast(GradientsFinding, carry_out(analysis, out, report=report))


def gradients_analysis(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    windows: int | None = None,
    reach: int = LONG_REACH,
) -> GradientsAnalysis:
    """Returns the analysis that `gradients` carries out.

    Raises:
        InputError: As for `GradientsAnalysis`; or the store does not fit the models.
    """
    subjects = find_subjects(runs, snapshots=snapshots)
    store = store_of(subjects, data)
    return GradientsAnalysis(subjects=subjects, store=store, windows=windows, reach=reach)
