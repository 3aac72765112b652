"""The Copy and Repeat Copy tasks as endless streams of tokens, and how they get harder.

Read N bits, then write them R times, and then STOP (Graves et al. 2014, sec. 4.1 and 4.2; Jaderberg
et al. 2017, sec. 3.1). An episode with N = 3 and R = 2, one token per step:

    input    START  0  1  1  R=2   ·  ·  ·  ·  ·  ·   ·
    target     ·    ·  ·  ·   ·    0  1  1  0  1  1  STOP

The delimiter gives the number of repeats, as in Graves' Repeat Copy; for Copy it is one. While the
bits are written the input is blank, so they can come from the state only; elsewhere there is no
target.

Shapes: T steps, B lanes, C steps that a buffer holds, K episodes, L steps of an episode.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TASKS = ("copy", "repeat-copy")

BLANK, START, ZERO, ONE, STOP, ONCE = range(6)  # the delimiter of R repeats is ONCE + R - 1
MOST_REPEATS = 32  # with delimiters of their own; the paper's longest solved task has R = 8
VOCAB_SIZE = ONCE + MOST_REPEATS
NO_TARGET = -100  # the target that cross_entropy ignores

SOLVED_BELOW_BITS = 0.15  # Jaderberg et al. 2017, sec. 3.1
MEAN_OVER_TARGETS = 4096  # about 0.005 bits of sampling error, against the threshold's 0.15

_BUFFERED_STEPS = 512  # so that a refill costs little per step

Block = npt.NDArray[np.int64]  # inputs and targets, one above the other


class Length(NamedTuple):
    """The length of an episode: N bits, written R times."""

    bits: int = 1
    repeats: int = 1

    @property
    def steps(self) -> int:
        """The steps of the whole episode: start, bits, delimiter, bits R times, stop."""
        return 3 + self.bits + self.bits * self.repeats

    @property
    def paper_length(self) -> int:
        """T_task = N·R + 3, the length that Jaderberg et al. 2017 report (table 2)."""
        return self.bits * self.repeats + 3

    def longer(self, task: str) -> "Length":
        """Returns the next length. Repeat Copy lengthens N and R in turn, N first."""
        if task == "repeat-copy" and self.bits > self.repeats:
            return self._replace(repeats=self.repeats + 1)
        return self._replace(bits=self.bits + 1)


class TaskStream:
    """An endless stream of episodes in every lane, each lane in its own phase.

    Windows are not aligned with episodes. A new length applies to the episodes that start after
    everything shown so far. At that point each lane pauses (blank, no target) for a random part of
    an episode, because otherwise all lanes would read, and then write, at the same time.

    Args:
        task: One of `TASKS`.
        lanes: Number of lanes, B.
        seed: Seed of bits and pauses. The stream does not depend on how it is cut into windows.
    """

    def __init__(self, task: str, lanes: int, seed: int) -> None:
        self.task = task
        self.length = Length()
        self._rng = np.random.default_rng(seed)
        self._buffer_2CB: Block = np.empty((2, 0, lanes), dtype=np.int64)
        self._now = 0  # all positions are columns of the buffer
        self._shown = 0  # columns that `window` or `peek` has returned: these must not change
        self._start_B = np.zeros(lanes, dtype=np.int64)  # first episode of the current length
        self._end_B = np.zeros(lanes, dtype=np.int64)
        self._pause_and_refill()

    @property
    def settled(self) -> bool:
        """Whether every lane has reached the current length."""
        return bool(self._now >= self._start_B.max())

    def window(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns the next steps `(inputs_TB, targets_TB)`, int64, and moves on."""
        shown = self.peek(steps)
        self._now += steps
        return shown

    def peek(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns the next steps without moving on; later windows will show the same."""
        while self._now + steps > self._end_B.min():
            self._refill()
        end = self._now + steps
        self._shown = max(self._shown, end)
        inputs_TB, targets_TB = torch.from_numpy(self._buffer_2CB[:, self._now : end])
        return inputs_TB, targets_TB

    def grow(self) -> None:
        """Makes episodes longer, from the first that has neither begun nor been shown."""
        shown_B = np.maximum(self._shown - self._start_B, 0)
        begun_B = -(-shown_B // self.length.steps)
        self._end_B = self._start_B + begun_B * self.length.steps
        self.length = self.length.longer(self.task)
        self._pause_and_refill()

    def _pause_and_refill(self) -> None:
        pause_B = self._rng.integers(0, self.length.steps, len(self._end_B))
        self._start_B = self._end_B + pause_B
        self._refill(pause_B)

    def _refill(self, pause_B: Block | None = None) -> None:
        """Makes a new buffer: the rest of the old one, a pause, and more episodes."""
        new_2BC = self._episodes()
        kept_B = self._end_B - self._now
        begin_B = kept_B if pause_B is None else kept_B + pause_B
        lanes, width = new_2BC.shape[1:]
        # A fresh array, because the windows returned are views of the old one.
        buffer_2CB = np.full((2, begin_B.max() + width, lanes), BLANK, dtype=np.int64)
        buffer_2CB[1] = NO_TARGET
        for lane, (kept, begin) in enumerate(zip(kept_B, begin_B, strict=True)):
            old_2C = self._buffer_2CB[:, self._now : self._end_B[lane], lane]
            buffer_2CB[:, :kept, lane] = old_2C
            buffer_2CB[:, begin : begin + width, lane] = new_2BC[:, lane]
        self._buffer_2CB = buffer_2CB
        self._start_B = self._start_B - self._now
        self._shown -= self._now
        self._now = 0
        self._end_B = begin_B + width

    def _episodes(self) -> Block:
        """Returns enough whole episodes of the current length for a buffer, `(2, B, K·L)`."""
        lanes, (bits, repeats) = len(self._end_B), self.length
        count = -(-_BUFFERED_STEPS // self.length.steps)
        bits_BKN = self._rng.integers(ZERO, ONE + 1, (lanes, count, bits))
        inputs_BKL = np.full((lanes, count, self.length.steps), BLANK, dtype=np.int64)
        targets_BKL = np.full_like(inputs_BKL, NO_TARGET)
        inputs_BKL[..., 0] = START
        inputs_BKL[..., 1 : 1 + bits] = bits_BKN
        inputs_BKL[..., 1 + bits] = ONCE + min(repeats, MOST_REPEATS) - 1
        targets_BKL[..., 2 + bits : -1] = np.tile(bits_BKN, repeats)
        targets_BKL[..., -1] = STOP
        return np.stack([inputs_BKL, targets_BKL]).reshape(2, lanes, -1)


class RunningError:
    """The mean error over the newest windows: the fewest with `MEAN_OVER_TARGETS` targets."""

    def __init__(self) -> None:
        self._windows: deque[tuple[float, int]] = deque()
        self._targets = 0

    def add(self, bits: float, targets: int) -> None:
        """Adds a window: its summed error in bits, and its number of targets."""
        self._windows.append((bits, targets))
        self._targets += targets
        while self._targets - self._windows[0][1] >= MEAN_OVER_TARGETS:
            self._targets -= self._windows.popleft()[1]

    @property
    def mean_bits(self) -> float | None:
        """The error per target; None while there are too few."""
        if self._targets < MEAN_OVER_TARGETS:
            return None
        return sum(bits for bits, _ in self._windows) / self._targets

    @property
    def solved(self) -> bool:
        """Whether the task is to be made harder."""
        return self.mean_bits is not None and self.mean_bits < SOLVED_BELOW_BITS
