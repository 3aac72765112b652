"""Measures where a step's time goes, with timers around the functions that it calls.

They are added from outside, so that sglm's own code needs none. If a timed function calls another
one, the time counts only for the outermost, so that nothing counts twice. Time outside all of them
is *other*; all shares add up to 1.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from scripts.benchmarks.training.case import Arm, Patch

PARTS = ("data", "forward", "loss", "backward", "synthesizer", "clip", "optimizer")

Moment = Any  # seconds on a CPU, a recorded event on a GPU


class Stopwatch:
    """Spans of time by name, measured by the clock on a CPU, by events on the stream of a GPU.

    A GPU works asynchronously, so the clock would measure only the launches. Events are recorded
    when the work begins and ends; waiting for launches counts where it occurs.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.spans: list[tuple[str, Moment, Moment]] = []
        self.inside = False

    def now(self) -> Moment:
        """Returns this moment, on the stream."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> dict[str, float]:
        """Returns the sum of all spans so far, by name; waits for their ends."""
        if self.on_cuda:
            torch.cuda.synchronize()
        sums: dict[str, float] = {}
        for name, start, end in self.spans:
            took = start.elapsed_time(end) / 1000 if self.on_cuda else end - start
            sums[name] = sums.get(name, 0.0) + took
        return sums

    @contextmanager
    def watching(self, patches: list[Patch]) -> Iterator[None]:
        """Times the functions within the context, and restores them at its end."""
        before = []
        try:
            for owner, name, part in patches:
                members, function = vars(owner), getattr(owner, name)
                before.append((members, name, members.get(name)))
                members[name] = self._timed(function, part)
            yield
        finally:
            for members, name, old in reversed(before):
                if old is None:
                    del members[name]  # a method: the class still has it
                else:
                    members[name] = old

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def measured(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return function(*arguments, **named)
            self.inside = True
            start = self.now()
            try:
                return function(*arguments, **named)
            finally:
                self.spans.append((part, start, self.now()))
                self.inside = False

        return measured


def shares(arm: Arm, device: torch.device, blocks: int = 2) -> dict[str, float]:
    """Returns each part's share of a step, and the rest as *other*: means over whole blocks."""
    watch = Stopwatch(device)
    with watch.watching(arm.patches()):
        for _ in range(blocks):
            start = watch.now()
            for _ in range(arm.block):
                arm.step()
            watch.spans.append(("whole", start, watch.now()))
    seconds = watch.seconds()
    whole = seconds.pop("whole")
    found = {part: seconds.get(part, 0.0) / whole for part in PARTS}
    return found | {"other": 1 - sum(found.values())}
