"""Cuts a stream of token ids into windows: B lanes of contiguous text, T steps at a time.

Shapes: N tokens of the stream, B lanes, T steps of a window, C steps of coming text.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglm.errors import InputError
from sglm.runtime.ranks import ALONE, Ranks


class ComingText(NamedTuple):
    """A part of the coming text, in every lane: ids `(C, B)`, in the order of the text."""

    inputs_CB: Tensor
    targets_CB: Tensor


class Window(NamedTuple):
    """One window of every lane.

    Attributes:
        inputs_TB, targets_TB: Token ids, int64; a target is the token after its input.
        is_first: Whether the lanes start here, so that the state before it is the start state.
        is_last: Whether the lanes end here, so that no later window sends a gradient back.
        coming: At the first window of a stretch, the tokens of the stretch and of `lookahead` steps
            past its end; otherwise None.
        stretch: At the first window of a stretch, the number of its windows; otherwise 0.
        ahead: The tokens that follow the window, if the gauge measures at its end; otherwise None.
    """

    inputs_TB: Tensor
    targets_TB: Tensor
    is_first: bool
    is_last: bool
    coming: ComingText | None = None
    stretch: int = 0
    ahead: ComingText | None = None

    def to(self, device: torch.device) -> "Window":
        """Returns the same window on `device`; a copy to a GPU may not be complete on return."""

        def there(ids: Tensor) -> Tensor:
            return ids.to(device, non_blocking=True)

        return self._replace(
            inputs_TB=there(self.inputs_TB),
            targets_TB=there(self.targets_TB),
            coming=self.coming and ComingText(*map(there, self.coming)),
            ahead=self.ahead and ComingText(*map(there, self.ahead)),
        )


class Batcher:
    """The windows of all training steps over a stream, in any order; the epochs never end.

    Lane b reads the b-th of B equal parts of the stream. Every window is full: tokens at the end of
    a lane that do not fill a window are left out of that epoch. Each epoch starts one token later,
    so that over several epochs every token of every lane is a target. (Fewer than B tokens, the
    remainder of dividing the stream by B, never are.) The first input is `bos_id`.

    Args:
        ids_N: The stream; may be memory-mapped.
        batch: Number of lanes, B.
        window: Length of every window, T, unless `lengths` is given.
        bos_id: The input before the first token.
        lengths: Lengths of the windows of an epoch, if they vary; each epoch takes them in another
            order. None: all are `window`.
        stretch: Number of windows in a stretch.
        lookahead: Number of steps past the end of a stretch that `coming` reaches. None: there are
            no stretches.
        ranks: The processes that share the lanes; windows contain only the lanes of this rank.

    Raises:
        InputError: The stream is shorter than one window of every lane.
    """

    def __init__(
        self,
        ids_N: npt.NDArray[np.integer[Any]],
        *,
        batch: int,
        window: int,
        bos_id: int,
        lengths: Sequence[int] | None = None,
        stretch: int = 1,
        lookahead: int | None = None,
        ranks: Ranks = ALONE,
    ):
        self.lane_length = len(ids_N) // batch
        if self.lane_length < window:
            raise InputError(
                f"the training text has {len(ids_N):,} tokens, less than one"
                f" window of {batch} lanes × {window} steps; lower train.batch or train.window,"
                " or prepare more text"
            )
        self.ids_N = ids_N
        share = batch // ranks.count
        self.lanes = range(share * ranks.rank, share * (ranks.rank + 1))
        self.bos_id = bos_id
        self.lengths = lengths or [window] * (self.lane_length // window)
        self.stretch = stretch
        self.lookahead = lookahead
        self._starts: tuple[int, list[int]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        return len(self.lengths)

    def at(self, step: int) -> Window:
        """Returns the window of a step, counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        starts = self._window_starts(epoch)
        inputs_TB, targets_TB = self._cut(starts[index], starts[index + 1])
        coming, stretch = None, 0
        if self.lookahead is not None and index % self.stretch == 0:
            stretch = min(self.stretch, self.steps_per_epoch - index)
            end = min(starts[index + stretch] + self.lookahead, self.lane_length)
            coming = ComingText(*self._cut(starts[index], end))
        return Window(
            inputs_TB,
            targets_TB,
            is_first=index == 0,
            is_last=index == self.steps_per_epoch - 1,
            coming=coming,
            stretch=stretch,
        )

    def ahead(self, step: int, steps: int) -> ComingText:
        """Returns the next `steps` tokens after the window of a step; fewer at the end of a
        lane."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = self._window_starts(epoch)[index + 1]
        return ComingText(*self._cut(start, min(start + steps, self.lane_length)))

    def _window_starts(self, epoch: int) -> list[int]:
        """Returns where in a lane each window of an epoch starts, and where the last one ends."""
        if self._starts[0] != epoch:
            order = np.arange(self.steps_per_epoch)
            if len(set(self.lengths)) > 1:
                np.random.default_rng(epoch).shuffle(order)
            used = sum(self.lengths)
            shift = epoch % (self.lane_length - used + 1)
            lengths = (self.lengths[index] for index in order.tolist())
            self._starts = (epoch, list(accumulate(lengths, initial=shift)))
        return self._starts[1]

    def _cut(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Returns inputs and targets `(end - start, B)` of this part of every lane."""
        # Each row holds the token before the targets, then the targets.
        tokens = np.empty((len(self.lanes), end - start + 1), dtype=np.int64)
        for row, lane in enumerate(self.lanes):
            first = lane * self.lane_length + start
            if first == 0:
                tokens[row, 0] = self.bos_id
                tokens[row, 1:] = self.ids_N[: end - start]
            else:
                tokens[row] = self.ids_N[first - 1 : first + end - start]
        tokens_TB = torch.from_numpy(tokens).t()
        return tokens_TB[:-1].contiguous(), tokens_TB[1:].contiguous()
