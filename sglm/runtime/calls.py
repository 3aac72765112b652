"""Functions of tensors, called as they are or recorded in CUDA graphs and replayed.

What a synthesizer does between two windows are some hundred small kernels, which a GPU is done with
sooner than the CPU can launch them. A recording launches all of a call's kernels at once.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

# Calls before one is recorded, real ones: libraries choose kernels and allocate workspaces then,
# and optimizers their state, none of which can be done while recording. What is seldom called,
# such as the last reading of a text, is never recorded.
_LAUNCHED_FIRST = 3
# Each recording keeps the memory that its kernels use.
_MOST_RECORDINGS = 16


class Calls:
    """Calls functions as they are."""

    def run(self, name: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Calls it.

        Args:
            name: of the function together with everything that it depends on besides the tensors
                and the contents of memory that stays where it is.
            function: of these tensors, which it must not change.
            tensors: detached; their number and shapes may vary from call to call.
        """
        return function(*tensors)

    def forget(self) -> None:
        """Forgets all recordings, because memory that functions use has moved."""


class RecordedCalls(Calls):
    """Records each function in a CUDA graph, for each name and shapes, and replays that.

    A replay is the kernels of the recorded call and nothing else: what Python decides in a
    function is decided once, and what it waits for the device for cannot be recorded.
    """

    def __init__(self) -> None:
        self._called: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}

    def run(self, name: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        key = (name, *((each.shape, each.dtype) for each in tensors))
        if key not in self._recordings:
            self._called[key] += 1
            full = len(self._recordings) == _MOST_RECORDINGS
            if full or self._called[key] <= _LAUNCHED_FIRST:
                return function(*tensors)
            self._recordings[key] = _Recording(function, tensors=tensors)
        return self._recordings[key].replay(tensors)

    def forget(self) -> None:
        self._called.clear()
        self._recordings.clear()


class _Recording:
    """One function in a graph. Recording it executes none of its kernels."""

    def __init__(self, function: Callable[..., Tensor], *, tensors: Sequence[Tensor]) -> None:
        self.inputs = [each.clone() for each in tensors]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(*self.inputs)

    def replay(self, tensors: Sequence[Tensor]) -> Tensor:
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.result.clone()  # the next replay writes over it
