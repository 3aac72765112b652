"""What a killed session had done after its last checkpoint, read from the curves that it left."""

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
    """Steps that are done again, as far as they were logged, and how long they had taken."""

    steps: int
    seconds: float


def lost_work(events: Path, step: int) -> LostWork | None:
    """What was logged after a step.

    Args:
        events: of the last session.
        step: of the checkpoint that is continued from; 0 where there is none.

    Returns:
        None where nothing was logged after it, or the file is not readable.
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
    # The start of a session carries the number of its first step.
    done_before = before.step - 1 if before.HasField("session_log") else before.step
    seconds_per_step = (last.wall_time - before.wall_time) / max(1, last.step - done_before)
    steps = last.step - step
    return LostWork(steps, max(0.0, seconds_per_step * steps))


def restart_lines(step: int, total_steps: int, *, begun: bool, lost: LostWork | None) -> list[str]:
    """Where a session goes on, for people; nothing for the first session of a run.

    Args:
        step: steps done before.
        total_steps: of the whole run.
        begun: there was a session before.
        lost: of it.
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
    """All whole records of a file of events, whose last one a crash may have cut off.

    Raises:
        DecodeError: something else than events.
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
