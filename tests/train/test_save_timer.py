"""Checkpoints by the clock: when, at what cost, and that they change nothing."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from sglm.config import Config
from sglm.optim.precision import unchecked_precision
from sglm.text.store import TokenStore
from sglm.train import save_timer
from sglm.train.loop import train
from sglm.train.save_timer import SHORTEST_SECONDS, SaveTimer
from tests.train.test_loop import DROPOUT, curves, metrics

MakeConfig = Callable[..., Config]


class Clock:
    """A clock that somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        module = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(save_timer, "time", module)

    def save(self, timer: SaveTimer, seconds: float) -> None:
        with timer.saving():
            self.now += seconds

    def until_due(self, timer: SaveTimer) -> float:
        started = self.now
        while not timer.due():
            self.now += 0.5
        return self.now - started


def test_less_than_a_minute_is_lost_where_saving_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timer = Clock(monkeypatch), SaveTimer()
    assert clock.until_due(timer) == SHORTEST_SECONDS < 60
    clock.now += 500  # a long validation: due all the while
    assert timer.due()
    clock.save(timer, 0.1)
    assert clock.until_due(timer) == SHORTEST_SECONDS


def test_saving_takes_two_percent_of_the_time_where_it_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, timer = Clock(monkeypatch), SaveTimer()
    for _ in range(3):
        clock.save(timer, 4.0)
        assert 4.0 / clock.until_due(timer) == pytest.approx(0.02)


def test_one_slow_save_does_not_put_off_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, timer = Clock(monkeypatch), SaveTimer()
    clock.save(timer, 0.2)
    clock.save(timer, 90.0)
    assert clock.until_due(timer) == SHORTEST_SECONDS


def run(config: Config, store: TokenStore, out: Path) -> None:
    precision = unchecked_precision("fp32", torch.device("cpu"))
    train(config, store, out, precision=precision, console=io.StringIO())


def saved_steps(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("kind", ["adjoint", "recurrent"])
def test_checkpoints_by_the_clock_change_no_later_bit(
    kind: str,
    tiny_config: MakeConfig,
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Amid a stretch, amid a log interval, twice in a row, and right after a validation."""
    every = {"every": 3} if kind == "adjoint" else {}
    config = tiny_config(
        dropout=DROPOUT,
        synthesizer={"kind": kind, "hidden": 8, "factor": 0.9, **every},
        train={"evaluate_every_steps": 15, "keep_checkpoints": 20},
    )
    run(config, word_store, tmp_path / "whole")
    asked = iter(range(100))
    monkeypatch.setattr(SaveTimer, "due", lambda _: next(asked) in {4, 7, 8, 15, 23, 31})
    run(config, word_store, tmp_path / "saved")
    assert saved_steps(tmp_path / "whole") == [40]
    assert saved_steps(tmp_path / "saved") == [4, 7, 8, 15, 23, 31, 40]
    for name in ("last", "model", "checkpoints/latest"):
        file = "state.safetensors" if "latest" in name else "model.safetensors"
        left, right = (load_file(tmp_path / each / name / file) for each in ("whole", "saved"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "saved")
    assert curves(tmp_path / "whole") == curves(tmp_path / "saved")


def test_every_save_of_a_training_is_timed(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that moves on by 10 s whenever somebody looks: three steps are half a minute, and
    a save that takes 10 s puts off the next one for longer than the run lasts."""
    readings = itertools.count(0.0, 10.0)
    monkeypatch.setattr(save_timer, "time", SimpleNamespace(monotonic=lambda: next(readings)))
    run(tiny_config(), word_store, tmp_path)
    assert saved_steps(tmp_path) == [SHORTEST_SECONDS / 10 - 1, 40]


def test_only_the_newest_are_kept_whoever_asked_for_them(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter(range(100))
    monkeypatch.setattr(SaveTimer, "due", lambda _: next(asked) in {37, 39})
    config = tiny_config(train={"checkpoint_every_steps": 38, "keep_checkpoints": 3})
    run(config, word_store, tmp_path)
    assert saved_steps(tmp_path) == [38, 39, 40]
