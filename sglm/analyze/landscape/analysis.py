"""The analysis `landscape`: whether a step along a gradient lowers the true loss.

After the optimization landscapes of Ilyas et al. (2020): the loss along a gradient's direction and
a random one, on the windows that the gradient was computed on and on a long piece of other text;
docs/analysis.md describes the method.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

import torch

from sglm.analyze.analysis import Part, ReportsProgress, carry_out
from sglm.analyze.landscape.finding import LandscapeFinding
from sglm.analyze.landscape.lines import (
    ALONG,
    ASIDE,
    BATCHES,
    DISTRIBUTION_STEPS,
    LANES,
    LENGTHS,
    PLANE_STEPS,
    STEPS,
    LandscapeInputs,
    lines,
    plane,
    prepare_inputs,
)
from sglm.analyze.landscape.measure import score_text
from sglm.analyze.reading import LONG_REACH, WARM_UP
from sglm.analyze.subjects import (
    TRAINING_SPLIT,
    Subject,
    check_length,
    find_subjects,
    lanes_of,
    store_of,
)
from sglm.analyze.trained import load_trained, trained_fingerprint
from sglm.config import Config
from sglm.model.folder import read_card
from sglm.model.language_model import LSTMLanguageModel
from sglm.runtime.process import denormals_as_zero
from sglm.text.batcher import ComingText
from sglm.text.store import TokenStore
from sglm.train.build import lookahead_steps


@dataclass(frozen=True, kw_only=True)
class LandscapeAnalysis:
    """The loss around models (an `Analysis`).

    Args:
        subjects: Models that lie in runs.
        store: The store whose training text is read.

    Raises:
        InputError: A model lies in no run, or the text is too short.
    """

    subjects: Sequence[Subject]
    store: TokenStore
    what: str = "landscape"
    _kept_inputs: dict[str, LandscapeInputs] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for subject in self.subjects:
            config = subject.config()
            lanes, steps = LANES + config.train.batch, steps_of(config)
            purpose = f"{lanes} lanes of {steps} steps for {subject.name}"
            check_length(self.store, TRAINING_SPLIT, tokens=lanes * steps, purpose=purpose)

    def _settings(self, subject: Subject) -> Mapping[str, Any]:
        return {
            "run": [subject.name, trained_fingerprint(subject)],
            "store": self.store.fingerprint,
        }

    def memory_bytes(self) -> float:
        """See `Analysis`: of the largest run, weights, directions, distributions and one pass."""
        most = 0.0
        for subject in self.subjects:
            shape = read_card(subject.folder).model_shape()
            config = subject.config()
            weights = 16 * shape.parameters
            distributions = 6 * LANES * DISTRIBUTION_STEPS * shape.vocab_size
            ahead = 16 * config.train.batch * LONG_REACH * 20 * sum(shape.widths)
            text = (LANES + config.train.batch) * steps_of(config) * 4 * sum(shape.widths)
            most = max(most, 4 * (weights + distributions + ahead + text))
        return most

    def parts(self) -> Sequence[Part]:
        """See `Analysis`: one part with the lines of each model, one with the first's planes.

        The first model's parts follow each other, so that they share its `LandscapeInputs`.
        """
        lines_parts = [
            Part(
                name=f"{subject.name}-lines",
                compute=partial(self._lines, subject),
                seconds=self._seconds(subject, planes=False),
                depends_on=self._settings(subject),
            )
            for subject in self.subjects
        ]
        first = self.subjects[0]
        planes = Part(
            name=f"{first.name}-plane",
            compute=partial(self._plane, first),
            seconds=self._seconds(first, planes=True),
            depends_on=self._settings(first),
        )
        return [lines_parts[0], planes, *lines_parts[1:]]

    def _seconds(self, subject: Subject, *, planes: bool) -> float:
        config, per_token = subject.config(), self._seconds_per_token[subject.name]
        kinds = 3 if config.schedule.mode != "real" else 2
        if planes:
            points = kinds * len(ALONG) * len(ASIDE)
            return per_token * points * LANES * (PLANE_STEPS + WARM_UP)
        own = BATCHES[-1] * config.train.batch * config.train.window / len(BATCHES)
        points = kinds * len(BATCHES) * len(LENGTHS)
        return per_token * points * (LANES * (STEPS + WARM_UP) + own)

    def finding(self, values: Mapping[str, dict[str, Any]]) -> LandscapeFinding:
        """See `Analysis`."""
        return LandscapeFinding(
            runs=[values[f"{each.name}-lines"] for each in self.subjects],
            plane=values[f"{self.subjects[0].name}-plane"]["plane"],
        )

    @cached_property
    def _seconds_per_token(self) -> dict[str, float]:
        known: dict[Any, float] = {}
        found = {}
        for subject in self.subjects:
            shape = read_card(subject.folder).model_shape()
            if shape not in known:
                model = LSTMLanguageModel(shape).eval()
                ids = torch.zeros(20, LANES, dtype=torch.int64)
                for _ in ("cold", "timed"):  # the first pass takes longer than the others
                    start = time.perf_counter()
                    score_text(model, ComingText(ids, ids), skipped=4, distribution_steps=2)
                    known[shape] = (time.perf_counter() - start) / ids.numel()
            found[subject.name] = known[shape]
        return found

    def _inputs(self, subject: Subject) -> LandscapeInputs:
        """Returns the inputs of a model's parts; those of the latest model are kept."""
        if subject.name not in self._kept_inputs:
            self._kept_inputs.clear()  # frees the previous model's memory first
            trained = load_trained(subject)
            batch, steps = trained.config.train.batch, steps_of(trained.config)
            text = lanes_of(self.store, LANES + batch, steps)
            own = ComingText(*(ids[:, :batch] for ids in text))
            other = ComingText(*(ids[: WARM_UP + STEPS, batch:] for ids in text))
            self._kept_inputs[subject.name] = prepare_inputs(trained, own, other)
        return self._kept_inputs[subject.name]

    def _lines(self, subject: Subject) -> dict[str, Any]:
        with denormals_as_zero():
            found = lines(self._inputs(subject))
        return {"run": subject.name, **found}

    def _plane(self, subject: Subject) -> dict[str, Any]:
        with denormals_as_zero():
            return {"plane": plane(self._inputs(subject))}


def steps_of(config: Config) -> int:
    """Returns the steps that each lane needs, for the gradients or for scoring."""
    ahead = max(LONG_REACH, lookahead_steps(config) or 0)
    return WARM_UP + max(BATCHES[-1] * config.train.window + ahead, STEPS)


def landscape(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    report: ReportsProgress | None = None,
) -> LandscapeFinding:
    """Measures the loss around the models of runs (docs/analysis.md).

    Args:
        runs: Folders that `sglm train` wrote.
        data: A token store whose training text is read. None: the store of the first run.
        out: A folder for `landscape.json`, `landscape.png` and the parts from which the same call
            continues. None: nothing is written.
        snapshots: Whether to analyse the models at the ends of cycles, which have no synthesizer,
            instead of those of the newest checkpoints.
        report: Called before every part and at the end.

    Raises:
        InputError: A folder is not a run, the text is too short, memory is too small, or `out` is
            not writable.
    """
    analysis = landscape_analysis(runs, data=data, snapshots=snapshots)
    return cast(LandscapeFinding, carry_out(analysis, out, report=report))


def landscape_analysis(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
) -> LandscapeAnalysis:
    """Returns the analysis that `landscape` carries out.

    Raises:
        InputError: As for `LandscapeAnalysis`; or the store does not fit the models.
    """
    subjects = find_subjects(runs, snapshots=snapshots)
    return LandscapeAnalysis(subjects=subjects, store=store_of(subjects, data))
