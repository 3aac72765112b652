"""Means over the steps of a log interval, without waiting for the device at every step."""

import math
import time
from typing import NamedTuple

from torch import Tensor

from sglm.runtime.ranks import ALONE, Ranks
from sglm.train.step import StepResult

_AGREEMENT = ("cosine", "relative_mse", "norm_ratio")


class IntervalMeans(NamedTuple):
    """The means over the steps of a log interval.

    Attributes:
        loss: The mean loss in nats per token; NaN if every step was skipped.
        grad_norm: The gradient norm of the last step.
        agreement: The means of each measure of `Agreement` over the probes; empty without probes.
        tokens_per_s: The training speed over all ranks.
    """

    loss: float
    grad_norm: float
    agreement: dict[str, float]
    tokens_per_s: float


class IntervalMeter:
    """A meter that collects the results of steps, and reads them from the device only when asked.

    Args:
        sums: The result of `collect` in the checkpoint that the run continues from.
        ranks: The processes whose log-likelihoods are summed.
    """

    def __init__(self, sums: dict[str, float], *, ranks: Ranks = ALONE) -> None:
        self.sums = dict(sums)
        self.ranks = ranks
        self.waiting: list[StepResult] = []
        self.tokens = 0
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts measuring the speed anew."""
        self.started, self.tokens = time.monotonic(), 0

    def add(self, result: StepResult) -> None:
        """Adds the result of one step, without waiting for its numbers."""
        self.waiting.append(result)
        self.tokens += result.tokens * self.ranks.count

    def collect(self) -> dict[str, float]:
        """Returns the sums over the steps since the last `means`, which checkpoints save.

        Waits for the device. All ranks must call this.
        """
        nats = self.ranks.totals([float(result.nll_nats) for result in self.waiting])
        for result, nll_nats in zip(self.waiting, nats, strict=True):
            if math.isfinite(nll_nats):  # otherwise the step was skipped
                self._add("nll_nats", nll_nats)
                self._add("tokens", result.tokens * self.ranks.count)
            if result.agreement is not None and result.agreement.relative_mse.isfinite():
                self._add("probes", 1)
                for name in _AGREEMENT:
                    self._add(name, getattr(result.agreement, name))
            self.sums["grad_norm"] = float(result.grad_norm)
        self.waiting = []
        return dict(self.sums)

    def means(self) -> IntervalMeans:
        """Returns the means over the steps since the last call, and begins a new interval."""
        sums = self.collect()
        probes = sums.get("probes", 0)
        means = IntervalMeans(
            loss=sums["nll_nats"] / sums["tokens"] if "tokens" in sums else math.nan,
            grad_norm=sums["grad_norm"],
            agreement={name: sums[name] / probes for name in _AGREEMENT} if probes else {},
            tokens_per_s=self.tokens / max(time.monotonic() - self.started, 1e-9),
        )
        self.sums = {}
        return means

    def _add(self, name: str, value: float | Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)
