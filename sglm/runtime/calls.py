"""Calls of functions of tensors: made directly, or recorded in CUDA graphs and replayed.

A synthesizer's work between two windows consists of some hundred small kernels, which a GPU
finishes sooner than the CPU can launch them. A replay launches all of a call's kernels at once.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

# Number of ordinary calls before one is recorded. In these, libraries choose kernels and allocate
# workspaces, and optimizers their state, none of which is possible while recording. A call that is
# rarely made, such as the last reading of a text, is never recorded.
_DIRECT_CALLS_FIRST = 3
# Each recording keeps the memory that its kernels use.
_MAX_RECORDINGS = 16


class Calls:
    """Direct calls, without recording."""

    def run(self, name: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Calls a function and returns its result.

        Args:
            name: A name for the function and everything that it depends on, except the tensors and
                the contents of memory that does not move.
            function: A function of these tensors, which it must not change.
            tensors: Detached tensors; their number and shapes may vary from call to call.
        """
        return function(*tensors)

    def forget(self) -> None:
        """Drops all recordings; to be called if memory that the functions use has moved."""


class RecordedCalls(Calls):
    """Calls that are recorded in a CUDA graph for each name and shapes of tensors, and replayed.

    A replay runs the kernels of the recorded call and nothing else: decisions that a function makes
    in Python are made once, and a function that waits for the device cannot be recorded.
    """

    def __init__(self) -> None:
        self._called: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}

    def run(self, name: Hashable, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        key = (name, *((each.shape, each.dtype) for each in tensors))
        if key not in self._recordings:
            self._called[key] += 1
            full = len(self._recordings) == _MAX_RECORDINGS
            if full or self._called[key] <= _DIRECT_CALLS_FIRST:
                return function(*tensors)
            self._recordings[key] = _Recording(function, tensors=tensors)
        return self._recordings[key].replay(tensors)

    def forget(self) -> None:
        self._called.clear()
        self._recordings.clear()


class _Recording:
    """A recorded call of one function. Recording executes none of its kernels."""

    def __init__(self, function: Callable[..., Tensor], *, tensors: Sequence[Tensor]) -> None:
        self.inputs = [each.clone() for each in tensors]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = function(*self.inputs)

    def replay(self, tensors: Sequence[Tensor]) -> Tensor:
        for own, given in zip(self.inputs, tensors, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.result.clone()  # the next replay overwrites it
