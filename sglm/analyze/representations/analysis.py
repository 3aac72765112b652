"""The analysis of representations: which parts it has, and of which models they are."""

import itertools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from sglm.analyze.analysis import Part, ReportsProgress, carry_out
from sglm.analyze.representations.fields import (
    COMING_STEPS,
    PLACES,
    check_text_for_places,
    checkpoint_of,
    load_synthesis,
)
from sglm.analyze.representations.finding import RepresentationsFinding
from sglm.analyze.representations.implied_loss import DIRECTIONS, SEGMENTS
from sglm.analyze.representations.layers import Layers, read_layers
from sglm.analyze.representations.measures import (
    KL_EVERY,
    RDM_EVERY,
    measure_field,
    measure_model,
    measure_pair,
)
from sglm.analyze.representations.probes import Question, check_scikit_learn
from sglm.analyze.representations.sample import (
    CLASSES,
    LANES,
    Sample,
    brackets_open,
    choose_sample,
    frequency_classes,
    line_positions,
)
from sglm.analyze.subjects import Subject, find_subjects, store_of
from sglm.config import Config, plain_values
from sglm.errors import InputError
from sglm.model.folder import read_card
from sglm.model.language_model import ModelShape
from sglm.storage.names import CHECKPOINT_SUMS, SNAPSHOTS
from sglm.storage.untrusted import is_count
from sglm.text.store import TokenStore
from sglm.train.build import token_counts

POSITIONS = 8192
_NOT_IN_LABEL = ("seed", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps")


def representations(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    positions: int | None = None,
    report: ReportsProgress | None = None,
) -> RepresentationsFinding:
    """Compares the predictions and layers of runs, and the losses that their gradients imply.

    Args:
        runs: Folders that `sglm train` wrote, with the same tokenizer; widths and depths may
            differ.
        data: Store with a validation text. None: the store that the first run was trained on.
        out: Folder for the results, see `carry_out`.
        snapshots: Whether to compare the snapshots of the runs, which have no synthesizer, instead
            of the best models; each cycle is treated as a mode of its own.
        positions: Number of positions at which layers are compared, a multiple of 32. None: 8,192.
        report: Function that is called with the progress, see `carry_out`.

    Raises:
        InputError: See `prepare_representations` and `carry_out`.
    """
    analysis = prepare_representations(runs, data=data, snapshots=snapshots, positions=positions)
    finding = carry_out(analysis, out, report=report)
    assert isinstance(finding, RepresentationsFinding)
    return finding


def prepare_representations(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    positions: int | None = None,
) -> "RepresentationsAnalysis":
    """Checks the arguments of `representations` and prepares the analysis.

    Raises:
        InputError: `runs` is empty or names a run twice; one is a bare model; the tokenizers
            differ; `positions` is not a multiple of 32, or below 256; the text is too short; a
            checkpoint is damaged; scikit-learn is not installed.
    """
    check_scikit_learn()
    positions = POSITIONS if positions is None else positions
    if not is_count(positions) or positions % LANES or positions < 8 * LANES:
        raise InputError(f"positions: give a multiple of {LANES}, at least {8 * LANES}")
    subjects = find_subjects(runs, snapshots=snapshots)
    store = store_of(subjects, data)
    analysis = RepresentationsAnalysis(
        subjects=subjects, store=store, sample=choose_sample(store, positions)
    )
    for subject in subjects:
        if analysis.checkpoint_sums[subject.name] is not None:
            check_text_for_places(store, subject.config())
    return analysis


@dataclass(kw_only=True)
class RepresentationsAnalysis:
    """The analysis that `representations` carries out (an `Analysis`).

    Attributes:
        subjects: The runs' best models, or their snapshots, which have no synthesizer.
        store: Store whose validation text is read.
        sample: Positions at which layers are compared.
    """

    subjects: Sequence[Subject]
    store: TokenStore
    sample: Sample
    what: str = "representations"
    _kept_layers: dict[str, Layers] = field(default_factory=dict)

    @cached_property
    def labels(self) -> dict[str, str]:
        """The label of each run, which it shares with the runs that differ only in the seed."""
        configs = {subject: subject.config() for subject in self.subjects}
        label_of: dict[str, str] = {}
        labels = {}
        for subject, config in configs.items():
            values = plain_values(config)
            for name in _NOT_IN_LABEL:
                values["train"].pop(name)
            label = _short_label(config, configs.values()) + _cycle(subject)
            same = [known for known in label_of.values() if known.split(" #")[0] == label]
            key = json.dumps([values, _cycle(subject)], sort_keys=True)
            label_of.setdefault(key, f"{label} #{len(same) + 1}" if same else label)
            labels[subject.name] = label_of[key]
        return labels

    @cached_property
    def seeds(self) -> dict[str, int]:
        return {subject.name: subject.config().train.seed for subject in self.subjects}

    @cached_property
    def checkpoint_sums(self) -> dict[str, str | None]:
        """The checksums of each run's checkpoint; None without a synthesizer or a checkpoint."""
        sums: dict[str, str | None] = {}
        for subject in self.subjects:
            has_synthesizer = subject.config().schedule.mode != "real" and not _cycle(subject)
            checkpoint = checkpoint_of(subject) if has_synthesizer else None
            path = None if checkpoint is None else checkpoint.path / CHECKPOINT_SUMS
            sums[subject.name] = None if path is None else path.read_text(encoding="utf-8")
        return sums

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        return {subject.name: subject.fingerprint() for subject in self.subjects}

    def _text(self) -> Mapping[str, Any]:
        return {"text": self.store.fingerprint, "positions": len(self.sample.index_N)}

    def memory_bytes(self) -> float:
        """Estimates the peak memory: weights and layers of all models, the work on one or two."""
        count, kept, largest = len(self.sample.index_N), 0, 0
        for subject in self.subjects:
            shape = _shape(subject)
            units = shape.embedding + shape.state_size + shape.widths[-1]
            kept += 4 * (shape.parameters + count * units)
            logits = 4 * (SEGMENTS + 1) * COMING_STEPS * shape.vocab_size
            copies = 6 * count * max(shape.embedding, *shape.widths)
            largest = max(largest, 8 * (2 * shape.parameters + logits + copies))
        return kept + largest + 3 * 8 * (count / RDM_EVERY) ** 2 + 2**28

    def parts(self) -> Sequence[Part]:
        seconds, models, text = self._seconds, self._fingerprints, self._text()
        parts = [
            Part(
                name=f"model-{subject.name}",
                compute=partial(self._model, subject),
                seconds=seconds["read"] + seconds["probes"],
                depends_on={"model": models[subject.name], **text},
            )
            for subject in self.subjects
        ]
        for index, subject in enumerate(self.subjects[:-1]):
            others = self.subjects[index + 1 :]
            parts.append(
                Part(
                    name=f"pairs-{subject.name}",
                    compute=partial(self._pairs, subject, others),
                    seconds=seconds["pair"] * len(others),
                    depends_on={
                        "models": {e.name: models[e.name] for e in (subject, *others)},
                        **text,
                    },
                )
            )
        parts += [
            Part(
                name=f"field-{subject.name}",
                compute=partial(self._field, subject),
                seconds=seconds["field"],
                depends_on={
                    "model": models[subject.name],
                    "checkpoint": self.checkpoint_sums[subject.name],
                    "config": plain_values(subject.config()),
                    **text,
                },
            )
            for subject in self.subjects
            if self.checkpoint_sums[subject.name] is not None
        ]
        return parts

    @cached_property
    def _seconds(self) -> dict[str, float]:
        """The estimated time of each kind of part, from a matrix product that is timed here."""
        shape = max(
            (_shape(subject) for subject in self.subjects), key=lambda each: each.parameters
        )
        count, width = len(self.sample.index_N), shape.widths[-1]
        rows, columns = torch.ones(512, width), torch.ones(width, 4096)
        rows @ columns
        begun = time.perf_counter()
        for _ in range(3):
            rows @ columns
        a_product = (time.perf_counter() - begun) / 3 / (512 * width * 4096)
        softmax = count * shape.vocab_size * (width * a_product + 2e-9)
        units = shape.embedding + shape.state_size + width
        points = 2 * DIRECTIONS + 3 * SEGMENTS
        layers = sum(shape.layer_weights) * self.sample.ids_TB.size * a_product
        return {
            "read": softmax + 2 * layers,
            "probes": count * units * CLASSES * 400 * a_product,
            "pair": 4 * softmax / KL_EVERY + 2 * units**2 * count * a_product,
            "field": 2
            * PLACES
            * COMING_STEPS
            * a_product  # in float64
            * (2 * SEGMENTS * shape.vocab_size * width + 3 * points * sum(shape.layer_weights)),
        }

    def _layers(self, subject: Subject) -> Layers:
        if subject.name not in self._kept_layers:
            self._kept_layers[subject.name] = read_layers(subject.load(), self.sample)
        return self._kept_layers[subject.name]

    @cached_property
    def _questions(self) -> list[Question]:
        """The questions for the probes, without those that the text cannot answer."""
        train_N = self.sample.is_first_half
        answers = {
            "class": ("class", self._next_classes),
            "line": ("number", line_positions(self.store, self.sample)),
            "bracket": ("yes or no", brackets_open(self.store, self.sample)),
        }
        return [
            Question(name=name, kind=kind, answers_N=answers_N, train_N=train_N)
            for name, (kind, answers_N) in answers.items()
            if answers_N is not None
        ]

    @cached_property
    def _next_classes(self) -> np.typing.NDArray[np.int64]:
        return frequency_classes(token_counts(self.store))[self.sample.next_N]

    def _model(self, subject: Subject) -> dict[str, Any]:
        layers = self._layers(subject)
        return measure_model(
            layers, self.sample, classes_N=self._next_classes, questions=self._questions
        )

    def _pairs(self, subject: Subject, others: Sequence[Subject]) -> dict[str, Any]:
        own = self._layers(subject)
        return {other.name: measure_pair(own, self._layers(other)) for other in others}

    def _field(self, subject: Subject) -> dict[str, Any]:
        checkpoint = checkpoint_of(subject)
        if checkpoint is None:
            raise InputError(
                f"{subject.run}: its checkpoint was removed during the analysis; start again"
            )
        return measure_field(load_synthesis(subject, checkpoint), self.store)

    def finding(self, values: Mapping[str, dict[str, Any]]) -> RepresentationsFinding:
        names = [subject.name for subject in self.subjects]
        models = {
            name: {"label": self.labels[name], "seed": self.seeds[name], **values[f"model-{name}"]}
            for name in names
        }
        pairs = [
            {"runs": [one, other], **values[f"pairs-{one}"][other]}
            for one, other in itertools.combinations(names, 2)
        ]
        fields = {
            each.name: values.get(f"field-{each.name}")
            for each in self.subjects
            if each.config().schedule.mode != "real" and not _cycle(each)
        }
        return RepresentationsFinding(
            positions=len(self.sample.index_N), models=models, pairs=pairs, fields=fields
        )


def _short_label(config: Config, all_configs: Iterable[Config]) -> str:
    """Returns the mode, and the synthesizer's kind if runs of that mode differ in it."""
    mode, kind = config.schedule.mode, config.synthesizer.kind
    kinds = {each.synthesizer.kind for each in all_configs if each.schedule.mode == mode}
    if mode == "real" or len(kinds) == 1:
        return mode
    return kind if mode == "synthetic" else f"{mode} {kind}"


def _cycle(subject: Subject) -> str:
    """Returns ` @` and the number of the cycle for a snapshot, otherwise an empty string."""
    if subject.folder.parent.name != SNAPSHOTS:
        return ""
    return f" @{int(subject.folder.name.rpartition('-')[2])}"


def _shape(subject: Subject) -> ModelShape:
    return read_card(subject.folder).model_shape()
