"""Progress for whoever watches: a bar on a terminal, plain lines elsewhere."""

import os
import time
from contextlib import suppress
from typing import TextIO

_BAR_WIDTH = 20


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
        clear = "\r\x1b[2K" if _is_terminal(self.stream) else ""
        print_while_open(f"{clear}{text}\n", self.stream)

    def progress(self, step: int, facts: str, speed: str) -> None:
        """How far the run is, and how long it will take.

        Args:
            step: steps done.
            facts, speed: what to say of them.
        """
        seconds_per_step = (time.monotonic() - self.started) / (step - self.first_step)
        text = (
            f"step {step:,}/{self.total_steps:,}  {facts}  {speed}"
            f"  {duration(seconds_per_step * (self.total_steps - step))} left"
        )
        if not _is_terminal(self.stream):
            print_while_open(f"{text}\n", self.stream)
            return
        filled = round(_BAR_WIDTH * step / self.total_steps)
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        columns = os.get_terminal_size(self.stream.fileno()).columns
        print_while_open(f"\r\x1b[2K{f'{bar} {text}'[: columns - 1]}", self.stream)

    def close(self) -> None:
        """Ends the line of the bar."""
        if _is_terminal(self.stream):
            print_while_open("\n", self.stream)


def print_while_open(text: str, stream: TextIO) -> None:
    """Prints, unless nobody can read it: a terminal that was closed, or a pipe whose reader has
    gone, must not end what takes days."""
    with suppress(OSError, ValueError):  # ValueError: the stream itself is closed
        print(text, end="", file=stream, flush=True)


def _is_terminal(stream: TextIO) -> bool:
    with suppress(OSError, ValueError):
        return stream.isatty()
    return False


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
