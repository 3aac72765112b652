"""The streams of scripts/long_memory are the tasks that they claim to be."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scripts.experiments import long_memory as harness
from scripts.experiments import long_memory_tasks as tasks

LANES = 5


def grown(task: str, lessons: int, lanes: int = LANES, seed: int = 0) -> Any:
    """A stream after so many lessons, in the middle of the new length."""
    stream = tasks.TaskStream(task, lanes, seed)
    for _ in range(lessons):
        stream.window(7)
        stream.grow()
    while not stream.settled:
        stream.window(1)
    return stream


def episodes_of(inputs_T: Tensor, targets_T: Tensor) -> list[tuple[list[int], list[int]]]:
    """The whole episodes of one lane, each from its start symbol to before the next one."""
    starts = (inputs_T == tasks.START).nonzero().flatten().tolist()
    return [
        (inputs_T[begin:end].tolist(), targets_T[begin:end].tolist())
        for begin, end in pairwise(starts)
    ]


def assert_is_episode(inputs: list[int], targets: list[int], bits: int, repeats: int) -> None:
    """Written out from the description, not from the code."""
    read = inputs[1 : 1 + bits]
    assert set(read) <= {tasks.ZERO, tasks.ONE}
    assert inputs[0] == tasks.START
    assert inputs[1 + bits] == tasks.ONCE + repeats - 1
    assert targets[: 2 + bits] == [tasks.NO_TARGET] * (2 + bits)
    written = read * repeats
    end = 2 + bits + len(written)
    assert targets[2 + bits : end + 1] == [*written, tasks.STOP]
    assert set(inputs[2 + bits :]) == {tasks.BLANK}
    # A pause, if any, is blank and wants nothing.
    assert set(targets[end + 1 :]) <= {tasks.NO_TARGET}


@pytest.mark.parametrize("task", ["copy", "repeat-copy"])
@pytest.mark.parametrize("lessons", [0, 1, 5])
def test_every_episode_wants_its_bits_in_order_and_a_stop(task: str, lessons: int) -> None:
    stream = grown(task, lessons)
    length = stream.length
    inputs_TB, targets_TB = stream.window(400)
    for lane in range(LANES):
        episodes = episodes_of(inputs_TB[:, lane], targets_TB[:, lane])
        assert len(episodes) >= 400 // length.steps - 2
        for inputs, targets in episodes:
            assert len(inputs) == length.steps  # one follows the other without a gap
            assert_is_episode(inputs, targets, length.bits, length.repeats)
    assert inputs_TB.max() < tasks.VOCAB_SIZE


def test_bits_are_fair_and_lanes_differ() -> None:
    inputs_TB, _ = grown("copy", 9).window(4000)
    ones = (inputs_TB == tasks.ONE).sum() / (
        (inputs_TB == tasks.ONE) | (inputs_TB == tasks.ZERO)
    ).sum()
    # About 8,700 bits: a standard deviation of 0.005.
    assert 0.475 < ones < 0.525
    columns = {tuple(inputs_TB[:, lane].tolist()) for lane in range(LANES)}
    assert len(columns) == LANES


def test_lanes_are_in_different_phases_of_long_episodes() -> None:
    """Or all of them would read, then all write, at the same time."""
    stream = grown("copy", 19, lanes=32)
    _, targets_TB = stream.window(stream.length.steps)
    writing_T = (targets_TB != tasks.NO_TARGET).float().mean(dim=1)
    # 32 lanes, about half of them writing at any time: a standard deviation of 0.09.
    assert writing_T.min() > 0.1
    assert writing_T.max() < 0.9


@settings(max_examples=50, deadline=None)
@given(
    task=st.sampled_from(tasks.TASKS),
    actions=st.lists(
        st.tuples(st.sampled_from(["window", "peek", "grow"]), st.integers(1, 60)), max_size=40
    ),
)
def test_what_was_peeked_comes_true_and_every_length_is_served(
    task: str, actions: list[tuple[str, int]]
) -> None:
    stream = tasks.TaskStream(task, 3, seed=1)
    seen: list[tuple[Tensor, Tensor]] = []
    promised: list[tuple[int, Tensor, Tensor]] = []
    lengths = [stream.length]
    now = 0
    for action, steps in actions:
        if action == "grow":
            stream.grow()
            lengths.append(stream.length)
        elif action == "peek":
            promised.append((now, *(part.clone() for part in stream.peek(steps))))
        else:
            # Not cloned: a window must stay as it was, whatever the stream does later.
            seen.append(stream.window(steps))
            now += steps
    ahead = max([begin + len(inputs) for begin, inputs, _ in promised], default=0)
    seen.append(stream.window(max(ahead - now, 0) + 3 * stream.length.steps))
    inputs_TB, targets_TB = (torch.cat(parts) for parts in zip(*seen, strict=True))
    for begin, inputs, targets in promised:
        assert torch.equal(inputs_TB[begin : begin + len(inputs)], inputs)
        assert torch.equal(targets_TB[begin : begin + len(inputs)], targets)
    # Whenever it grew: whole episodes only, and never a shorter one after a longer one.
    for lane in range(3):
        latest = 0
        for inputs, targets in episodes_of(inputs_TB[:, lane], targets_TB[:, lane]):
            (which,) = [
                index
                for index, length in enumerate(lengths)
                if (tasks.STOP in targets[: length.steps])
                and targets.index(tasks.STOP) == length.steps - 1
                and inputs[1 + length.bits] == tasks.ONCE + length.repeats - 1
            ]
            assert_is_episode(inputs, targets, *lengths[which])
            assert which >= latest
            latest = which


def test_a_longer_length_holds_for_the_episodes_that_start_after_what_was_shown() -> None:
    stream = tasks.TaskStream("copy", LANES, seed=0)
    for _ in range(200):  # more than a buffer holds
        stream.window(7)
    stream.peek(30)
    stream.grow()
    assert stream.length == tasks.Length(bits=2)
    assert not stream.settled
    old, new = tasks.Length().steps, stream.length.steps
    inputs_TB, _ = stream.peek(200)
    for lane in range(LANES):
        starts = (inputs_TB[:-3, lane] == tasks.START).nonzero().flatten().tolist()
        # The delimiter comes after the only bit of an old one.
        of_old = [begin for begin in starts if inputs_TB[begin + 2, lane] == tasks.ONCE]
        of_new = [begin for begin in starts if inputs_TB[begin + 3, lane] == tasks.ONCE]
        assert of_old + of_new == starts
        assert 30 - old <= of_old[-1] < 30  # begun before the end of what had been shown
        assert 30 <= of_new[0] < 30 + old + new  # after the old one's rest and a pause
        assert {later - earlier for earlier, later in pairwise(of_new)} == {new}
    stream.window(30 + old + new)
    assert stream.settled


def test_the_stream_depends_on_the_seed_and_not_on_the_windows() -> None:
    def read(seed: int, window: int) -> Tensor:
        stream = tasks.TaskStream("copy", LANES, seed)
        stream.peek(3 * window)
        return torch.cat([torch.stack(stream.window(window)) for _ in range(1200 // window)], dim=1)

    assert torch.equal(read(0, 3), read(0, 400))
    assert not torch.equal(read(0, 3), read(1, 3))


def test_lessons_and_their_lengths_are_those_of_the_paper() -> None:
    """Every figure of the paper's table is a length of this curriculum (Jaderberg et al. 2017)."""
    lengths: dict[str, list[tuple[int, int, int]]] = {}
    for task in tasks.TASKS:
        length, lengths[task] = tasks.Length(), []
        for _ in range(20):
            lengths[task].append((length.bits, length.repeats, length.paper_length))
            length = length.longer(task)
    assert lengths["copy"][:3] == [(1, 1, 4), (2, 1, 5), (3, 1, 6)]
    assert lengths["repeat-copy"][:5] == [(1, 1, 4), (2, 1, 5), (2, 2, 7), (3, 2, 9), (3, 3, 12)]
    for task, rows in harness.PAPER.items():
        reachable = {length for _, _, length in lengths[task]}
        assert {figure for figures in rows.values() for figure in figures} <= reachable


def test_the_running_error_is_the_mean_over_the_newest_windows() -> None:
    error, per_window = tasks.RunningError(), tasks.MEAN_OVER_TARGETS // 4
    for _ in range(3):
        error.add(0.0, per_window)
    assert error.mean_bits is None  # too few to judge by
    assert not error.solved
    error.add(0.2 * per_window, per_window)
    assert error.mean_bits == pytest.approx(0.05)
    assert error.solved
    for bits in (0.2, 0.2):
        error.add(bits * per_window, per_window)
    assert error.mean_bits == pytest.approx(0.15)
    error.add(0.0, 0)  # a window without targets changes nothing
    assert error.mean_bits == pytest.approx(0.15)
    error.add(0.2 * per_window, per_window)
    assert error.mean_bits == pytest.approx(0.2)
    assert not error.solved
