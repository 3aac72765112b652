"""The progress of a run on the console: a bar on a terminal, plain lines elsewhere."""

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
    """The console output of one session: lines and progress.

    Args:
        stream: The stream to write to.
        total_steps: Number of steps of the whole run.
        first_step: Number of steps done before this session.
    """

    def __init__(self, stream: TextIO, *, total_steps: int, first_step: int) -> None:
        self.stream = stream
        self.total_steps = total_steps
        self.first_step = first_step
        self.started = time.monotonic()

    def line(self, text: str) -> None:
        """Prints a line, in place of a progress bar that is shown there."""
        clear = ERASE_LINE if is_terminal(self.stream) else ""
        print_while_open(f"{clear}{text}\n", self.stream)

    def progress(self, step: int, *facts: str) -> None:
        """Shows the remaining time, the progress, and as many facts as fit on the line.

        Args:
            step: Number of steps done.
            facts: Further texts on the latest steps, the most important ones first.
        """
        seconds_per_step = (time.monotonic() - self.started) / (step - self.first_step)
        left = f"{duration(seconds_per_step * (self.total_steps - step))} left"
        done = f"step {step:,}/{self.total_steps:,}"
        if not is_terminal(self.stream):
            print_while_open(f"{_fit([done, left, *facts], PLAIN_COLUMNS)}\n", self.stream)
            return
        filled = round(_BAR_WIDTH * step / self.total_steps)
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        # Some terminals wrap a line that reaches the last column.
        columns = _columns(self.stream) - 1
        print_while_open(f"{ERASE_LINE}{_fit([left, bar, done, *facts], columns)}", self.stream)

    def close(self) -> None:
        """Ends the line of the progress bar."""
        if is_terminal(self.stream):
            print_while_open("\n", self.stream)


def _columns(stream: TextIO) -> int:
    """Returns the width of a terminal; 80 if it is unknown, as in a notebook."""
    with suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns
    return PLAIN_COLUMNS


def _fit(facts: Sequence[str], columns: int) -> str:
    """Joins the first fact and as many of the others as fit as a whole."""
    lengths = accumulate(2 + len(fact) for fact in facts)
    fitting = sum(length - 2 <= columns for length in lengths)
    return "  ".join(facts[: max(1, fitting)])
