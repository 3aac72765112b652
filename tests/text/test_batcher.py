"""Windows over a stream."""

from typing import Any

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.text.batcher import Batcher

EOS = 9999


def make(n: int, batch: int, window: int, **kwargs: Any) -> Batcher:
    return Batcher(np.arange(n, dtype=np.uint16), batch=batch, window=window, bos_id=EOS, **kwargs)


def test_targets_follow_inputs_and_the_stream_starts_after_eos() -> None:
    window = make(12, batch=2, window=3).at(0)
    assert window.inputs_TB.t().tolist() == [[EOS, 0, 1], [5, 6, 7]]
    assert window.targets_TB.t().tolist() == [[0, 1, 2], [6, 7, 8]]


@pytest.mark.parametrize(
    ("n", "batch", "window"), [(100, 4, 5), (101, 4, 7), (64, 1, 64), (9, 2, 4)]
)
def test_lanes_are_contiguous_within_an_epoch(n: int, batch: int, window: int) -> None:
    """The last target of one window is the first input of the next, in every lane."""
    batcher = make(n, batch, window)
    for step in range(3 * batcher.steps_per_epoch - 1):
        here, there = batcher.at(step), batcher.at(step + 1)
        assert here.is_last == there.is_first
        if not here.is_last:
            assert here.targets_TB[-1].tolist() == there.inputs_TB[0].tolist()


def test_over_the_epochs_every_token_of_every_lane_is_a_target() -> None:
    batcher = make(103, batch=4, window=6)
    epochs = 6
    seen: set[int] = set()
    for step in range(epochs * batcher.steps_per_epoch):
        seen |= set(batcher.at(step).targets_TB.flatten().tolist())
    assert seen == set(range(100))  # 103 // 4 = 25 tokens in each of 4 lanes


def test_within_an_epoch_no_token_is_a_target_twice() -> None:
    batcher = make(103, batch=4, window=6)
    for epoch in range(3):
        steps = range(epoch * batcher.steps_per_epoch, (epoch + 1) * batcher.steps_per_epoch)
        targets = [t for step in steps for t in batcher.at(step).targets_TB.flatten().tolist()]
        assert len(targets) == len(set(targets))


def test_text_shorter_than_one_window_names_the_cure() -> None:
    with pytest.raises(InputError, match=r"19 tokens.*4 lanes × 5 steps.*lower train.batch"):
        make(19, batch=4, window=5)
    make(20, batch=4, window=5)


LENGTHS = [2, 6, 1, 3, 3, 5]


def test_windows_of_given_lengths_cover_the_lane_in_order() -> None:
    batcher = make(4 * 22 + 3, batch=4, window=5, lengths=LENGTHS)
    starts = set()
    for epoch in range(6):
        steps = range(epoch * 6, (epoch + 1) * 6)
        windows = [batcher.at(step) for step in steps]
        assert sorted(len(window.inputs_TB) for window in windows) == sorted(LENGTHS)
        for lane in range(4):
            targets = [t for window in windows for t in window.targets_TB[:, lane].tolist()]
            first = targets[0]
            assert targets == list(range(first, first + sum(LENGTHS)))
            assert lane * 22 <= first
            assert targets[-1] < (lane + 1) * 22
            inputs = [t for window in windows for t in window.inputs_TB[:, lane].tolist()]
            assert inputs == [targets[0] - 1 if targets[0] else EOS, *targets[:-1]]
        assert [window.is_first for window in windows] == [True] + [False] * 5
        assert [window.is_last for window in windows] == [False] * 5 + [True]
        starts.add(windows[0].targets_TB[0, 0].item())
    assert starts == {0, 1, 2}  # 20 of 22 tokens are used: the rest gets its turn


def test_given_lengths_come_in_another_order_each_epoch_and_the_same_for_everyone() -> None:
    batcher, again = (make(100, batch=4, window=5, lengths=LENGTHS) for _ in range(2))
    steps = range(5 * batcher.steps_per_epoch)
    windows = [batcher.at(step) for step in steps]
    lengths = [len(window.inputs_TB) for window in windows]
    assert len({tuple(lengths[first : first + 6]) for first in steps[::6]}) > 1
    for step in reversed(steps):  # random access
        window = again.at(step)
        assert window.inputs_TB.tolist() == windows[step].inputs_TB.tolist()
        assert window.targets_TB.tolist() == windows[step].targets_TB.tolist()


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("stretch", [1, 4, 8])
@pytest.mark.parametrize("lookahead", [1, 3, 100])
def test_a_stretch_begins_with_the_coming_tokens(
    lengths: list[int] | None, stretch: int, lookahead: int
) -> None:
    """Exactly its windows and `lookahead` tokens more, cut where the lane ends."""
    lane_length = 23
    batcher = make(4 * lane_length, 4, 3, lengths=lengths, stretch=stretch, lookahead=lookahead)
    count = batcher.steps_per_epoch
    for step in range(4 * count):
        window, index = batcher.at(step), step % count
        assert (window.coming is not None) == (index % stretch == 0)
        assert window.stretch == (min(stretch, count - index) if index % stretch == 0 else 0)
        if window.coming is None:
            continue
        coming = [batcher.at(step + k) for k in range(min(stretch, count - index))]
        inputs_CB, targets_CB = window.coming
        for lane in range(4):
            targets = [t for each in coming for t in each.targets_TB[:, lane].tolist()]
            end = min(targets[-1] + 1 + lookahead, (lane + 1) * lane_length)
            expected = [*targets, *range(targets[-1] + 1, end)]
            assert targets_CB[:, lane].tolist() == expected
            before = expected[0] - 1 if expected[0] else EOS
            assert inputs_CB[:, lane].tolist() == [before, *expected[:-1]]


def test_looking_ahead_changes_no_window_and_is_off_unless_asked_for() -> None:
    plain, ahead = make(103, 4, 5), make(103, 4, 5, stretch=3, lookahead=2)
    for step in range(3 * plain.steps_per_epoch):
        window = plain.at(step)
        assert window.coming is None
        other = ahead.at(step)
        assert window.inputs_TB.tolist() == other.inputs_TB.tolist()
        assert (window.is_first, window.is_last) == (other.is_first, other.is_last)
