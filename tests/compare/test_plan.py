"""What a comparison says before and while it runs."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sglm.compare import plan as plan_module
from sglm.compare.grid import Cell, Grid
from sglm.compare.plan import ComparisonPlan, plan_comparison
from sglm.compare.process import Execution
from sglm.compare.progress import RunProgress
from sglm.compare.runs import Comparison
from sglm.compare.timing import seconds_of_run, seconds_of_runs
from sglm.errors import ConfigError
from sglm.optim.precision import unchecked_precision
from tests.compare.conftest import CPU, fake_python, write_run

EXECUTION = Execution(precision=unchecked_precision("fp32", CPU))
MakeComparison = Callable[..., Comparison]


@pytest.fixture(autouse=True)
def _however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons here are, and their times would not be asked for."""
    monkeypatch.setattr(plan_module, "SHORT_UPDATES", 0)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The variants that were timed, call by call; each takes 100 seconds."""
    calls: list[list[str]] = []

    def seconds(configs: dict[str, object], *_: object) -> dict[str, float]:
        calls.append(list(configs))
        return dict.fromkeys(configs, 100.0)

    monkeypatch.setattr(plan_module, "seconds_of_runs", seconds)
    return calls


def test_a_plan_counts_what_is_left_and_adds_up_its_time(
    make_comparison: MakeComparison, timed: list[list[str]]
) -> None:
    comparison, grid = make_comparison(), Grid(variants=("bptt", "dni"), seeds=(0, 1))
    write_run(comparison, Cell("bptt", 1), 20.0, seconds=4000.0)
    console = io.StringIO()
    plan = plan_comparison(comparison, grid, EXECUTION, console=console)
    assert timed == [["dni"]]  # how long the other takes is known
    assert console.getvalue() == "timing some steps: dni\n"
    assert plan.seconds == {"bptt": 4000.0, "dni": 100.0}
    assert plan.total_seconds == 4200.0
    assert plan.as_json()["runs"] == [
        {"variant": "bptt", "seed": 0},
        {"variant": "dni", "seed": 0},
        {"variant": "dni", "seed": 1},
    ]
    shown = plan.describe().splitlines()
    assert shown[0] == "3 runs of 40 updates to be made, 1 finished already"
    assert shown[1].split() == ["bptt", "1:06:40", "a", "run", "seeds", "0"]
    assert shown[2].split() == ["dni", "1:40", "a", "run", "seeds", "0,", "1"]
    assert shown[3].startswith("about 1:10:00 in all")


def test_with_everything_finished_nothing_is_timed(
    make_comparison: MakeComparison, timed: list[list[str]]
) -> None:
    comparison = make_comparison()
    write_run(comparison, Cell("dni", 0), 20.0)
    grid, console = Grid(variants=("dni",), seeds=(0,)), io.StringIO()
    plan = plan_comparison(comparison, grid, EXECUTION, console=console)
    assert (plan.waiting, plan.total_seconds, timed) == ([], 0, [])
    assert console.getvalue() == ""
    assert plan.describe().startswith("0 runs of 40 updates to be made, 1 finished already")


def test_a_comparison_of_minutes_is_not_timed(
    make_comparison: MakeComparison,
    timed: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "SHORT_UPDATES", 100)
    grid, console = Grid(variants=("bptt", "dni"), seeds=(0,)), io.StringIO()
    plan = plan_comparison(make_comparison(), grid, EXECUTION, console=console)
    assert (plan.total_seconds, timed, console.getvalue()) == (None, [], "")
    assert plan.describe().splitlines()[-1].startswith("a matter of minutes")
    many = Grid(variants=("bptt", "dni"), seeds=(0, 1))  # 160 updates
    assert plan_comparison(make_comparison(), many, EXECUTION, console=console).seconds
    large = make_comparison("large", model={"layers": 1, "hidden": 2000})
    assert plan_comparison(large, grid, EXECUTION, console=console).seconds


def test_what_will_be_refused_is_refused_before_anything_is_timed(
    make_comparison: MakeComparison, timed: list[list[str]]
) -> None:
    comparison, grid = make_comparison(), Grid(variants=("bptt", "dni"), seeds=(0,))
    write_run(comparison, Cell("bptt", 0), 20.0, precision="bf16")
    with pytest.raises(ConfigError, match="--precision bf16"):
        plan_comparison(comparison, grid, EXECUTION, console=io.StringIO())
    assert timed == []


def test_that_nothing_will_be_drawn_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ComparisonPlan(waiting=[Cell("dni", 0)], finished=0, updates=4, seconds=None)
    assert "matplotlib" not in plan.describe()
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "it needs matplotlib; pip install matplotlib" in plan.describe()
    assert plan.as_json()["draws"] is False


def test_a_timing_that_fails_leaves_the_time_unknown(
    make_comparison: MakeComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(tmp_path / "python", "exit 1", monkeypatch)
    grid = Grid(variants=("bptt",), seeds=(0,))
    plan = plan_comparison(make_comparison(), grid, EXECUTION, console=io.StringIO())
    assert plan.total_seconds is None
    assert "how long they will take is not known" in plan.describe()


def test_the_start_of_a_run_counts_as_well(
    make_comparison: MakeComparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"seconds": {"bptt": 7.0}, "busy": 0.0})
    fake_python(tmp_path / "python", f"cat > /dev/null; sleep 0.2; echo '{answer}'", monkeypatch)
    comparison = make_comparison()
    seconds = seconds_of_runs({"bptt": comparison.base}, comparison.store, EXECUTION)
    assert seconds is not None
    assert seconds["bptt"] > 7.2


@pytest.mark.parametrize("variant", ["bptt", "alternating", "bptt-long", "swapped", "artbp"])
def test_a_longer_run_is_expected_to_take_longer(
    make_comparison: MakeComparison, variant: str
) -> None:
    """Every kind of variant can be timed; a hundred times the steps take many times as long."""

    def expected(cycles: list[float]) -> float:
        comparison = make_comparison(
            schedule={"unit": "steps", "cycles": cycles}, synthesizer={"every": 3}
        )
        config = comparison.config(Cell(variant, 0))
        return seconds_of_run(config, comparison.store, EXECUTION.precision)

    # Others may take the machine's cores meanwhile; ten times is still told from one.
    assert expected([2000.0, 2000.0]) > 10 * expected([20.0, 20.0]) > 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_which_run_its_step_and_the_time_left(tmp_path: Path) -> None:
    log, console = tmp_path / "run.log", Terminal()
    log.write_text("step 9,999/9,999  0:00 left  of an earlier session\n")
    progress = RunProgress(console, title="[2/9] dni seed 0", log=log, later_seconds=600.0)
    progress.poll()
    assert console.getvalue() == ""
    with log.open("a") as lines:
        lines.write("training on cpu\nstep 50/4,000  9:59 left  loss 6\nstep 100/4,000  1:01:30 le")
    progress.poll()
    shown = "\r\x1b[2K[2/9] dni seed 0: 9:59 left, of all runs 19:59, step 50/4,000"
    assert console.getvalue() == shown
    progress.poll()
    assert console.getvalue() == shown  # nothing new
    progress.close()
    assert console.getvalue() == f"{shown}\r\x1b[2K"


def test_elsewhere_a_line_comes_now_and_then(tmp_path: Path) -> None:
    log, console = tmp_path / "run.log", io.StringIO()
    progress = RunProgress(console, title="[1/1] dni seed 0", log=log, later_seconds=None)
    log.write_text("step 50/4,000  9:59 left  loss 6\n")
    progress.poll()
    assert console.getvalue() == ""
    progress.printed_at -= 1000.0
    progress.poll()
    assert console.getvalue() == "[1/1] dni seed 0: 9:59 left, step 50/4,000\n"
    progress.close()
    assert "\x1b" not in console.getvalue()


def test_a_run_takes_as_long_as_those_of_its_variant_did_on_average(
    make_comparison: MakeComparison, timed: list[list[str]]
) -> None:
    comparison, grid = make_comparison(), Grid(variants=("bptt",), seeds=(0, 1, 2))
    for seed, seconds in ((1, 4000.0), (2, 1000.0)):
        write_run(comparison, Cell("bptt", seed), 20.0, seconds=seconds)
    plan = plan_comparison(comparison, grid, EXECUTION, console=io.StringIO())
    assert (plan.seconds, timed) == ({"bptt": 2500.0}, [])
