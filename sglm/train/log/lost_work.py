"""The work that a killed session lost after its last checkpoint, read from its event file."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event

from sglm.errors import InputError
from sglm.storage.untrusted import read_bounded

LARGEST_EVENTS_BYTES = 1 << 28  # weeks of one session
_HEADER = struct.Struct("<QI")  # length of the record, checksum of the length
_CHECKSUM_BYTES = 4


class LostWork(NamedTuple):
    """Steps to be repeated, as far as they were logged, and the time that they had taken."""

    steps: int
    seconds: float


def lost_work(events: Path, step: int) -> LostWork | None:
    """Estimates the work that was done after a step.

    Args:
        events: The event file of the last session.
        step: The step of the checkpoint to continue from; 0 if there is none.

    Returns:
        The lost work, or None if nothing was logged after the step or the file cannot be read.
    """
    try:
        raw = read_bounded(events, LARGEST_EVENTS_BYTES)
        before, last = None, None
        for event in _events(raw):
            if event.HasField("session_log") or event.step <= step:
                before = event
            elif event.HasField("summary"):
                last = event
    except (InputError, OSError, DecodeError):
        return None
    if before is None or last is None:
        return None
    # The record of a session's start carries the number of its first step.
    done_before = before.step - 1 if before.HasField("session_log") else before.step
    seconds_per_step = (last.wall_time - before.wall_time) / max(1, last.step - done_before)
    steps = last.step - step
    return LostWork(steps, max(0.0, seconds_per_step * steps))


def restart_lines(step: int, total_steps: int, *, begun: bool, lost: LostWork | None) -> list[str]:
    """Returns lines that tell people where a session continues; none for a run's first session.

    Args:
        step: Number of steps done before this session.
        total_steps: Number of steps of the whole run.
        begun: Whether there was a session before.
        lost: The work that the previous session lost, if known.
    """
    if not (step or begun):
        return []
    if step:
        lines = [f"continuing at step {step:,} of {total_steps:,}"]
    else:
        lines = [f"no checkpoint yet: beginning again at step 0 of {total_steps:,}"]
    if lost is not None:
        after = " after that checkpoint" if step else ""
        steps = f"{lost.steps:,} step{'s' * (lost.steps != 1)}"
        lines.append(
            f"at least {steps} (about {lost.seconds:.0f} s){after} are lost and done again"
        )
    return lines


def _events(raw: bytes) -> Iterator[Any]:
    """Yields all complete records of an event file, whose last one a crash may have cut off.

    Raises:
        DecodeError: The file holds something other than events.
    """
    start = 0
    while start + _HEADER.size <= len(raw):
        length, _ = _HEADER.unpack_from(raw, start)
        start += _HEADER.size
        end = start + length
        if end + _CHECKSUM_BYTES > len(raw):
            return
        yield Event.FromString(raw[start:end])
        start = end + _CHECKSUM_BYTES
