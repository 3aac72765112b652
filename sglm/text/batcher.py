"""A stream of token ids cut into windows: B lanes of contiguous text, T steps at a time.

Shapes: N tokens of the stream, B lanes, T steps of a window.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglm.errors import InputError


class Window(NamedTuple):
    """One window of every lane.

    Attributes:
        inputs_TB, targets_TB: token ids, int64; a target is the token after its input.
        is_first: the lanes start here, so the state before it is the start state.
        is_last: the lanes end here, so no later window will send a gradient back.
    """

    inputs_TB: Tensor
    targets_TB: Tensor
    is_first: bool
    is_last: bool


class Batcher:
    """Window `step` of an endless training run over a stream; random access, no state of its own.

    Lane b reads the b-th of B equal parts of the stream, and every window is full: the tail of a
    lane that does not fill one waits, and the start moves on by one token each epoch, so that over
    the epochs every token of every lane is a target (the fewer than B tokens that do not divide
    evenly among the lanes are not). The very first input is `<eos>`: a text starts like a line.

    Args:
        ids_N: the stream; memory-mapped is fine.
        batch: B.
        window: T.
        eos_id: what comes before the first token.

    Raises:
        InputError: the stream is shorter than one window of every lane.
    """

    def __init__(
        self, ids_N: npt.NDArray[np.unsignedinteger], batch: int, window: int, eos_id: int
    ):
        self.lane_length = len(ids_N) // batch
        if self.lane_length < window:
            raise InputError(
                f"the training text has {len(ids_N):,} tokens, less than one"
                f" window of {batch} lanes × {window} steps; lower train.batch or train.window,"
                " or prepare more text"
            )
        self.ids_N = ids_N
        self.batch = batch
        self.window = window
        self.eos_id = eos_id

    @property
    def steps_per_epoch(self) -> int:
        return self.lane_length // self.window

    def at(self, step: int) -> Window:
        """The window of that step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        shift = epoch % (self.lane_length % self.window + 1)
        first_target = shift + index * self.window
        # (B, T+1): the token before the window's targets, then the targets.
        tokens = np.empty((self.batch, self.window + 1), dtype=np.int64)
        for lane in range(self.batch):
            start = lane * self.lane_length + first_target
            if start == 0:
                tokens[lane, 0] = self.eos_id
                tokens[lane, 1:] = self.ids_N[: self.window]
            else:
                tokens[lane] = self.ids_N[start - 1 : start + self.window]
        tokens_TB = torch.from_numpy(tokens).t()
        return Window(
            tokens_TB[:-1].contiguous(),
            tokens_TB[1:].contiguous(),
            is_first=index == 0,
            is_last=index == self.steps_per_epoch - 1,
        )
