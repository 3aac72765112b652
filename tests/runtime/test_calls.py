"""Recorded calls: the law that a replay is the call, and what a recording cannot hold."""

import pytest
import torch
from torch import Tensor

from sglm.runtime import calls
from sglm.runtime.calls import Calls, RecordedCalls
from tests.tape import Tape, use_tapes


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    return use_tapes(monkeypatch)


class Counter:
    """Adds up what it is given, in memory that stays where it is."""

    def __init__(self) -> None:
        self.sum = torch.zeros(())
        self.calls = 0

    def add(self, values: Tensor) -> Tensor:
        self.calls += 1
        self.sum += values.sum()
        return values + self.sum


def results(how: Calls, counter: Counter, lengths: list[int]) -> list[Tensor]:
    return [
        how.run("add", counter.add, torch.arange(length) + float(number))
        for number, length in enumerate(lengths)
    ]


def test_replays_are_calls_and_results_last(tapes: list[Tape]) -> None:
    lengths = [3, 3, 4, 3, 3, 3, 4, 3]
    plain, replayed = Counter(), Counter()
    expected = results(Calls(), plain, lengths)
    found = results(RecordedCalls(), replayed, lengths)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(replayed.sum, plain.sum)
    # Of the six calls of length 3 three were launched, one recorded; those of length 4 are too few.
    assert [tape.replays for tape in tapes] == [3]
    assert replayed.calls == 3 + 1 + 2


def test_each_name_has_its_own_recording(tapes: list[Tape]) -> None:
    recorded, ones = RecordedCalls(), torch.ones(2)
    for _ in range(5):
        assert recorded.run("twice", lambda x: 2 * x, ones).tolist() == [2.0, 2.0]
        assert recorded.run("thrice", lambda x: 3 * x, ones).tolist() == [3.0, 3.0]
    assert [tape.replays for tape in tapes] == [2, 2]


def test_recordings_do_not_pile_up(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_MAX_RECORDINGS", 2)
    recorded = RecordedCalls()
    for length in (1, 2, 3):
        for _ in range(5):
            ones = torch.ones(length)
            assert torch.equal(recorded.run("twice", lambda x: 2 * x, ones), 2 * ones)
    assert len(tapes) == 2


def test_what_waits_for_the_device_cannot_be_recorded(tapes: list[Tape]) -> None:
    recorded = RecordedCalls()
    for _ in range(3):
        recorded.run("wait", lambda x: x * float(x.sum()), torch.ones(2))
    with pytest.raises(AssertionError, match="waits"):
        recorded.run("wait", lambda x: x * float(x.sum()), torch.ones(2))


def test_what_has_moved_is_recorded_again(tapes: list[Tape]) -> None:
    recorded, counter = RecordedCalls(), Counter()
    results(recorded, counter, [2] * 5)
    counter.sum = torch.full((), 100.0)
    recorded.forget()
    assert all(each[0] >= 100 for each in results(recorded, counter, [2] * 5))
    assert len(tapes) == 2
