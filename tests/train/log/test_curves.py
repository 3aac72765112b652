"""Curves of many sessions, as TensorBoard itself reads them: in the order of the files' names."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sglm.config import Config
from sglm.errors import Stopped
from sglm.optim.precision import unchecked_precision
from sglm.text.store import TokenStore
from sglm.train import loop
from sglm.train.log import tensorboard
from sglm.train.loop import train

CPU = torch.device("cpu")
MakeConfig = Callable[..., Config]
EVERY_STEP: dict[str, object] = {"log_every_steps": 1, "checkpoint_every_steps": 2}


class Killed(BaseException):
    """Stands in for SIGKILL: nothing in sglm catches it, nothing is saved."""


def session(config: Config, store: TokenStore, out: Path, killed_at_poll: int | None) -> None:
    polls = iter(range(1, 10**9))

    def asked() -> int | None:
        if next(polls) == killed_at_poll:
            raise Killed
        return None

    train(
        config,
        store,
        out,
        precision=unchecked_precision("fp32", CPU),
        console=io.StringIO(),
        stop_signal=asked,
    )


def steps(out: Path, tag: str) -> list[int]:
    accumulator = EventAccumulator(str(out / "tensorboard"))
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars(tag)]


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([1e9 + 100 * n for n in range(12)], id="as it goes"),
        pytest.param([1e9 - 100 * n for n in range(12)], id="set back"),
        pytest.param([1e9] * 12, id="all within a second"),
        pytest.param([5.0] * 12, id="without a battery"),
    ],
)
def test_curves_have_no_gaps_and_no_doubles_whatever_the_clock_does(
    seconds: list[float],
    tiny_config: MakeConfig,
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny_config(train=EVERY_STEP)
    for second in seconds[:-1]:
        monkeypatch.setattr(tensorboard, "time", SimpleNamespace(time=lambda now=second: now))
        with pytest.raises(Killed):
            session(config, word_store, tmp_path / "run", killed_at_poll=5)
    monkeypatch.setattr(tensorboard, "time", SimpleNamespace(time=lambda: seconds[-1]))
    session(config, word_store, tmp_path / "run", None)
    assert steps(tmp_path / "run", "train/loss") == list(range(1, 41))
    assert steps(tmp_path / "run", "valid/loss") == [20, 40]


def test_an_evaluation_cut_short_by_a_signal_and_then_by_a_kill_is_shown_once(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal saves the step without its evaluation. That is made up for, and the kill comes
    before the checkpoint that would say so."""
    config, out = tiny_config(train={**EVERY_STEP, "evaluate_every_steps": 3}), tmp_path / "run"
    polls = iter(range(1, 10**9))
    with pytest.raises(Stopped, match="at step 3 of 40"):
        train(
            config,
            word_store,
            out,
            precision=unchecked_precision("fp32", CPU),
            console=io.StringIO(),
            stop_signal=lambda: signal.SIGTERM if next(polls) >= 4 else None,
        )

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as until_killed:
        until_killed.setattr(loop, "_keep_best", killed)
        with pytest.raises(Killed):
            session(config, word_store, out, None)
    session(config, word_store, out, None)
    assert steps(out, "train/loss") == list(range(1, 41))
    assert steps(out, "valid/loss") == sorted({*range(3, 41, 3), 20, 40})


def test_sessions_that_come_to_nothing_leave_no_files(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """A run that is killed over and over before its first checkpoint, or between two of them."""
    config, out = tiny_config(train={**EVERY_STEP, "checkpoint_every_steps": 10}), tmp_path / "run"
    for killed_at_poll in (3, 3, 15, 3, 3, 3, None):
        if killed_at_poll is None:
            session(config, word_store, out, None)
            continue
        with pytest.raises(Killed):
            session(config, word_store, out, killed_at_poll)
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert steps(out, "train/loss") == list(range(1, 41))
