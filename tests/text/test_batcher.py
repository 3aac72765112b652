"""Windows over a stream."""

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.text.batcher import Batcher

EOS = 99


def make(n: int, batch: int, window: int) -> Batcher:
    return Batcher(np.arange(n, dtype=np.uint16), batch, window, EOS)


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
