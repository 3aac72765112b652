"""Progress for whoever watches: a bar on a terminal, plain lines elsewhere."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import TextIO

from sglm.runtime.terminal import (
    ERASE_LINE,
    PLAIN_COLUMNS,
    duration,
    is_terminal,
    print_while_open,
)

_BAR_WIDTH = 10


class ConsoleLog:
    """Lines and progress of one session.

    Args:
        stream: where to.
        total_steps: of the whole run.
        first_step: steps done before this session.
    """

    def __init__(self, stream: TextIO, *, total_steps: int, first_step: int) -> None:
        self.stream = stream
        self.total_steps = total_steps
        self.first_step = first_step
        self.started = time.monotonic()

    def line(self, text: str) -> None:
        """A line; a bar that stands there gives way."""
        clear = ERASE_LINE if is_terminal(self.stream) else ""
        print_while_open(f"{clear}{text}\n", self.stream)

    def progress(self, step: int, *facts: str) -> None:
        """How long the run will take yet, and how far it is.

        Args:
            step: steps done.
            facts: what to say of them, as many as there is room for, the first ones first.
        """
        seconds_per_step = (time.monotonic() - self.started) / (step - self.first_step)
        left = f"{duration(seconds_per_step * (self.total_steps - step))} left"
        done = f"step {step:,}/{self.total_steps:,}"
        if not is_terminal(self.stream):
            print_while_open(f"{_fit([done, left, *facts], PLAIN_COLUMNS)}\n", self.stream)
            return
        filled = round(_BAR_WIDTH * step / self.total_steps)
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        # A line that reaches the last column would be wrapped by some terminals.
        columns = _columns(self.stream) - 1
        print_while_open(f"{ERASE_LINE}{_fit([left, bar, done, *facts], columns)}", self.stream)

    def close(self) -> None:
        """Ends the line of the bar."""
        if is_terminal(self.stream):
            print_while_open("\n", self.stream)


def _columns(stream: TextIO) -> int:
    """The width of a terminal; a notebook's, say, does not tell."""
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns
    return PLAIN_COLUMNS


def _fit(facts: Sequence[str], columns: int) -> str:
    """The first one, and of the others as many as there is room for, none by halves."""
    lengths = accumulate(2 + len(fact) for fact in facts)
    fitting = sum(length - 2 <= columns for length in lengths)
    return "  ".join(facts[: max(1, fitting)])
