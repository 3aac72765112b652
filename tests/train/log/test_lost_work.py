"""What a restart says: where it goes on, and what is done again."""

import io
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from sglm.config import Config
from sglm.errors import Stopped
from sglm.optim.precision import unchecked_precision
from sglm.text.store import TokenStore
from sglm.train.log.lost_work import lost_work
from sglm.train.loop import train
from tests.train.log.test_curves import CPU, Killed

MakeConfig = Callable[..., Config]


def session(config: Config, store: TokenStore, out: Path, end: BaseException | int | None) -> str:
    """What is printed until step 27, where it is killed or stopped; or until the end. The
    validation after step 20 asks twice."""
    console, polls = io.StringIO(), iter(range(10**9))

    def asked() -> int | None:
        if next(polls) == 29 and end is not None:
            if isinstance(end, int):
                return end
            raise end
        return None

    with suppress(Killed, Stopped):
        train(
            config,
            store,
            out,
            precision=unchecked_precision("fp32", CPU),
            console=console,
            stop_signal=asked,
        )
    return console.getvalue()


@pytest.mark.parametrize(
    ("end", "every", "said"),
    [
        pytest.param(
            Killed(),
            20,
            [
                "continuing at step 20 of 40",
                "at least 5 steps (about N s) after that checkpoint are lost and done again",
            ],
            id="after a checkpoint",
        ),
        pytest.param(
            Killed(),
            None,
            [
                "no checkpoint yet: beginning again at step 0 of 40",
                "at least 25 steps (about N s) are lost and done again",
            ],
            id="before the first",
        ),
        pytest.param(Killed(), 26, ["continuing at step 26 of 40"], id="nothing logged since"),
        pytest.param(signal.SIGTERM, None, ["continuing at step 27 of 40"], id="nothing lost"),
    ],
)
def test_a_restart_says_what_is_lost(
    end: BaseException | int,
    every: int | None,
    said: list[str],
    tiny_config: MakeConfig,
    word_store: TokenStore,
    tmp_path: Path,
) -> None:
    train_section = {"log_every_steps": 5, "checkpoint_every_steps": every}
    config = tiny_config(train={k: v for k, v in train_section.items() if v})
    first = session(config, word_store, tmp_path / "run", end)
    assert first.splitlines()[1].startswith("step 5/40")  # a first session has nothing to say
    second = session(config, word_store, tmp_path / "run", None)
    before_training = re.sub(r"about \d+ s", "about N s", second).splitlines()[1:]
    assert before_training[: len(said)] == said
    assert ("lost" in second) == ("lost" in "".join(said))


def events_of(path: Path, points: list[tuple[int, float]], first_step: int) -> Path:
    """A session that started at second 1,000 and logged at those steps and seconds."""
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        start = SessionLog(status=SessionLog.START)
        records = [Event(step=first_step + 1, wall_time=1000.0, session_log=start)]
        for step, seconds in points:
            summary = Summary(value=[Summary.Value(tag="train/loss", simple_value=1.0)])
            records.append(Event(step=step, wall_time=seconds, summary=summary))
        for record in records:
            writer.write(record.SerializeToString())
    return path


def test_time_is_that_of_the_steps_after_the_checkpoint(tmp_path: Path) -> None:
    """Logged every 50 steps of half a second, saved at 120; then 80 steps at least are lost."""
    points = [(50, 1025.0), (100, 1050.0), (150, 1075.0), (200, 1100.0)]
    assert lost_work(events_of(tmp_path / "a", points, 0), 120) == (80, 40.0)
    assert lost_work(events_of(tmp_path / "b", points, 0), 0) == (200, 100.0)
    assert lost_work(events_of(tmp_path / "c", points[2:], 120), 120) == (80, pytest.approx(100.0))
    assert lost_work(events_of(tmp_path / "d", points, 0), 200) is None


def test_a_file_that_a_crash_cut_or_a_disk_garbled_is_no_reason_not_to_train(
    tmp_path: Path,
) -> None:
    whole = events_of(tmp_path / "whole", [(50, 1025.0), (100, 1050.0)], 0).read_bytes()
    cut = tmp_path / "cut"
    found = set()
    for length in range(len(whole) + 1):
        cut.write_bytes(whole[:length])
        found.add(lost_work(cut, 20))
    assert found == {None, (30, 15.0), (80, 40.0)}
    cut.write_bytes(whole[:12] + b"\xff" * 40 + whole[52:])
    assert lost_work(cut, 20) is None
    assert lost_work(tmp_path / "absent", 20) is None
