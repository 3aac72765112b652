"""The analysis `curvature`: Hessian and Gauss–Newton matrix of the loss in each weight matrix.

It repeats measurements of Wu et al. (2020), "Dissecting Hessian: Understanding Common Structure of
Hessian in Neural Networks", on LSTMs. Their generalization bound is not computed.
"""

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch

from sglm.analyze.analysis import Part, ReportsProgress, carry_out
from sglm.analyze.curvature.finding import CurvatureFinding
from sglm.analyze.curvature.groups import MatrixMeasurement
from sglm.analyze.curvature.kronecker import DRAWS
from sglm.analyze.curvature.measure import EIGENPAIRS, MATRICES, Weight, WeightMeasurer
from sglm.analyze.curvature.spectrum import TOLERANCE, check_installed, iteration_bytes
from sglm.analyze.curvature.windows import (
    CONTEXT_STEPS,
    WindowLoss,
    choose_windows,
    expansion_floats,
    needed_tokens,
)
from sglm.analyze.subjects import Subject, check_length, find_subjects, store_of
from sglm.errors import InputError
from sglm.model.folder import read_card
from sglm.model.language_model import ModelShape

TOKENS = 1000
# For estimates of time: products with a matrix until `EIGENPAIRS` are found (43 to 90 observed),
# forward passes of the LSTM that one product costs, and how much slower its many small
# multiplications are than the large one that is timed.
_PRODUCTS, _FORWARD_PASSES, _SMALL_PRODUCT_SLOWDOWN = 65, 10, 2.0
# For estimates of memory: numbers that a product holds per token and unit, and bytes per number of
# an eigenvector that is kept as base64 text.
_ACTIVATIONS, _KEPT_BYTES = 120, 3


class CurvatureAnalysis:
    """The curvature of the loss of some models in each weight matrix (an `Analysis`).

    Args:
        runs: Folders that `sglm train` wrote.
        data: The token store. None: the store of the first run.
        snapshots: Whether to analyse the models at the ends of cycles instead of the best ones.
        tokens: Approximate number of training tokens over which the loss is computed.
        dtype: The dtype of the products.

    Raises:
        InputError: Packages are missing, `tokens` is not positive, the models differ in size or
            have an adaptive softmax, or the text does not fit them.
    """

    what = "curvature"

    def __init__(
        self,
        runs: Sequence[str | os.PathLike[str]],
        *,
        data: str | os.PathLike[str] | None = None,
        snapshots: bool = False,
        tokens: int = TOKENS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        check_installed()
        if tokens < 1:
            raise InputError(f"the loss of {tokens} tokens cannot be computed; give a few hundred")
        self.subjects = find_subjects(runs, snapshots=snapshots)
        self.snapshots = snapshots
        self.store = store_of(self.subjects, data)
        self.dtype = dtype
        self.configs = {each.name: each.config() for each in self.subjects}
        self.steps = self.configs[self.subjects[0].name].train.window
        self.windows = max(2, round(tokens / self.steps))
        check_length(
            self.store,
            "train",
            tokens=needed_tokens(self.windows, self.steps),
            purpose=f"{self.windows} windows of {self.steps} tokens",
        )
        self.shape = _one_shape(self.subjects)
        self.weights = [
            Weight(layer=layer, matrix=matrix)
            for layer in range(self.shape.layers)
            for matrix in MATRICES
        ]
        self._measurer: tuple[str, WeightMeasurer] | None = None
        self._rate: float | None = None

    def _numbers(self) -> Mapping[str, Any]:
        return {
            "text": self.store.fingerprint,
            "windows": [self.windows, self.steps, CONTEXT_STEPS],
            "numbers": [EIGENPAIRS, DRAWS, TOLERANCE, str(self.dtype)],
        }

    def memory_bytes(self) -> float:
        """See `Analysis`."""
        tokens, shape = self.windows * self.steps, self.shape
        sizes = [4 * units * max(inputs, units) for inputs, units in _widths(shape)]
        floats = 2 * shape.parameters + expansion_floats(shape, tokens)
        floats += _ACTIVATIONS * tokens * sum(shape.widths)
        kept = _KEPT_BYTES * EIGENPAIRS * 2 * sum(sizes) * len(self.subjects)
        return floats * self.dtype.itemsize + iteration_bytes(max(sizes), EIGENPAIRS) + kept

    def parts(self) -> Sequence[Part]:
        """See `Analysis`: one part for each weight matrix of each model."""
        rate = self._multiply_adds_a_second()
        tokens, shape = self.windows * self.steps, self.shape
        layers = sum(4 * units * (inputs + units) for inputs, units in _widths(shape))
        product = tokens * (_FORWARD_PASSES * layers + 4 * shape.widths[-1] ** 2)
        expansion = tokens * shape.vocab_size * shape.widths[-1] * (shape.widths[-1] + DRAWS)
        seconds = 2 * _PRODUCTS * _SMALL_PRODUCT_SLOWDOWN * product / rate
        shared = expansion / rate
        models = {each.name: each.fingerprint() for each in self.subjects}
        return [
            Part(
                name=f"{subject.name}-{weight.name}",
                compute=partial(self._measure, subject, weight),
                seconds=seconds + (shared if weight == self.weights[0] else 0.0),
                depends_on={"model": models[subject.name], **self._numbers()},
            )
            for subject in self.subjects
            for weight in self.weights
        ]

    def finding(self, values: Mapping[str, dict[str, Any]]) -> CurvatureFinding:
        """See `Analysis`."""
        measurements = [
            MatrixMeasurement(
                subject=subject.name,
                cycle=subject.folder.name if self.snapshots else None,
                seed=self.configs[subject.name].train.seed,
                mode=self.configs[subject.name].schedule.mode,
                weight=weight.short,
                values=values[f"{subject.name}-{weight.name}"],
            )
            for subject in self.subjects
            for weight in self.weights
        ]
        return CurvatureFinding(measurements=measurements, windows=self.windows, steps=self.steps)

    def _measure(self, subject: Subject, weight: Weight) -> dict[str, Any]:
        if self._measurer is None or self._measurer[0] != subject.name:
            self._measurer = None  # frees the previous model's memory first
            ids = self.store.ids("train")
            windows = choose_windows(ids, windows=self.windows, steps=self.steps)
            window_loss = WindowLoss(subject.load(self.dtype), windows=windows)
            self._measurer = (subject.name, WeightMeasurer(window_loss))
        return self._measurer[1].measure(weight)

    def _multiply_adds_a_second(self) -> float:
        """Times a product like those that expand the loss, and returns multiply-adds per second."""
        if self._rate is None:
            words, features = self.shape.vocab_size, self.shape.widths[-1]
            factor = torch.ones(words, features, dtype=self.dtype)
            began = time.perf_counter()
            for _ in range(3):
                factor.t() @ factor
            seconds = time.perf_counter() - began
            self._rate = 3 * words * features**2 / max(seconds, 1e-6)
        return self._rate


def curvature(
    runs: Sequence[str | os.PathLike[str]],
    *,
    data: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    snapshots: bool = False,
    tokens: int = TOKENS,
    report: ReportsProgress | None = None,
) -> CurvatureFinding:
    """Analyses the top eigenspaces of the loss's curvature in each weight matrix of an LSTM.

    It describes their eigenvectors, compares models with each other, and measures how well
    Kronecker factors reproduce the eigenspaces (docs/analysis.md).

    Args:
        runs: Folders that `sglm train` wrote.
        data: The token store. None: the store of the first run.
        out: A folder for `curvature.json`, `curvature.png` and the parts from which the same call
            continues. None: nothing is written.
        snapshots: Whether to analyse the models at the ends of cycles instead of the best ones.
        tokens: Approximate number of training tokens over which the loss is computed.
        report: Called before every part and at the end.

    Raises:
        InputError: As for `CurvatureAnalysis`; or memory is too small, or `out` is not writable.
    """
    analysis = CurvatureAnalysis(runs, data=data, snapshots=snapshots, tokens=tokens)
    finding = carry_out(analysis, out, report=report)
    return cast(CurvatureFinding, finding)


def _one_shape(subjects: Sequence[Subject]) -> ModelShape:
    """Returns the shape that all models have.

    Raises:
        InputError: The models differ in shape, or have an adaptive softmax, whose curvature is not
            implemented.
    """
    first = read_card(subjects[0].folder).model_shape()
    if first.cutoffs:
        raise InputError(
            f"{subjects[0].name} has an adaptive softmax, whose curvature is not implemented;"
            ' analyse runs with model.softmax = "full"'
        )
    for each in subjects[1:]:
        if read_card(each.folder).model_shape() != first:
            raise InputError(
                f"{each.name} differs in size from {subjects[0].name}, so their eigenspaces cannot"
                " be compared; analyse runs of different sizes one by one"
            )
    return first


def _widths(shape: ModelShape) -> list[tuple[int, int]]:
    """Returns the number of inputs and of units of each layer."""
    return list(zip(shape.input_widths, shape.widths, strict=True))
