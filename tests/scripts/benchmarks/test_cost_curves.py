"""The costs' curves: one thing varied at a time, points measured once, all of them drawn."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import cost_curves as curves
from scripts.benchmarks.training.worker import Worker


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of a moment, and arms in this process."""
    monkeypatch.setattr(curves, "BASE", curves.Size(1, 8, 30, 2, 3))
    monkeypatch.setattr(curves, "BASE_TEXT", 3000)
    axes = {"window": [3, 6], "hidden": [8, 16], "text": [3000, 9000]}
    axes |= {"batch": [2], "layers": [1], "vocab_size": [30]}
    monkeypatch.setattr(curves, "AXES", axes)
    monkeypatch.setattr(curves, "HORIZONS", [3, 9])
    monkeypatch.setattr(curves, "SECONDS", 0.0)

    @contextmanager
    def running(tasks: list[Any]) -> Iterator[list[Any]]:
        yield [Worker(task) for task in tasks]

    monkeypatch.setattr(curves, "running", running)


def test_one_thing_is_varied_at_a_time_around_a_common_base() -> None:
    base = curves.Point(curves.BASE, curves.BASE_TEXT)
    names = set()
    for axis, values in curves.AXES.items():
        along = curves.points(axis)
        assert list(along) == values
        assert base in along.values()
        for value, point in along.items():
            assert (point.text if axis == "text" else getattr(point.size, axis)) == value
            names.add(point.name)
    different = sum(len(values) - 1 for values in curves.AXES.values())
    assert len(names) == different + 1  # the base is measured once


def test_the_effective_horizon_reaches_two_thousand_steps() -> None:
    assert curves.BASE.window == 35
    assert all(steps % 35 == 0 for steps in curves.HORIZONS)
    assert abs(max(curves.HORIZONS) - 2000) < 35


@pytest.mark.usefixtures("tiny")
def test_points_are_measured_once_and_drawn(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out, pictures = tmp_path / "cost", tmp_path / "pictures"
    pictures.mkdir()
    monkeypatch.setattr(sys, "argv", ["cost", str(out), "--pictures", str(pictures)])
    curves.main()
    first = capsys.readouterr()
    assert first.err.count("…") == 4 + 5 + 1  # axes, horizons, and the empty process
    for name in ("cost-curves.png", "cost-horizon.png"):
        assert (pictures / name).read_bytes().startswith(b"\x89PNG")
    point = json.loads((out / "1x8-v30-b2-t3-n3000.json").read_text(encoding="utf-8"))
    assert point["rounds"] == curves.FEWEST_ROUNDS
    for arm in ("bptt", "alternating"):
        assert point[arm]["us_per_token"] > 0
        assert point[arm]["peak_memory_mb"] > 50

    monkeypatch.setattr(curves, "running", None)
    curves.main()
    again = capsys.readouterr()
    assert again.err == ""
    assert again.out == first.out


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("way", "name", "window", "horizon"),
    [
        ("window", "real", 9, None),
        ("read again", "real", 3, 9),
        ("synthetic", "alternating adjoint", 3, None),
    ],
)
def test_each_way_runs_over_the_steps_that_it_claims(
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    name: str,
    window: int,
    horizon: int | None,
) -> None:
    asked, run = [], curves.running

    @contextmanager
    def noted(tasks: list[Any]) -> Iterator[list[Any]]:
        asked.extend(tasks)
        with run(tasks) as arms:
            yield arms

    monkeypatch.setattr(curves, "running", noted)
    assert curves.measure_horizon(way, 9)["us_per_token"] > 0
    (task,) = asked
    assert (task.name, task.size.window, task.horizon) == (name, window, horizon)
