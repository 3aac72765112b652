"""scripts/bench at sizes that take a moment: its numbers' names, that it compares like with like,
and that what is not measured is not claimed."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks.training import bench, floor, measure, parts, worker
from scripts.benchmarks.training.arms import build_arm
from scripts.benchmarks.training.case import Patch, Place, Size, random_text
from scripts.benchmarks.training.worker import Task, Worker, running
from sglm.dni.learned import LearnedEstimator


@pytest.fixture(scope="module")
def size() -> Size:
    return Size(layers=2, hidden=8, vocab_size=30, batch=2, window=3)


@pytest.fixture
def arms(size: Size) -> Callable[..., dict[str, Any]]:
    def build(*names: str) -> dict[str, Any]:
        return {name: build_arm(name, size, Place()) for name in names}

    return build


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms without processes of their own, which take seconds to start."""

    @contextmanager
    def running(tasks: list[Any]) -> Iterator[list[Any]]:
        yield [Worker(task) for task in tasks]

    monkeypatch.setattr(measure, "running", running)


def run(monkeypatch: Any, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    return bench.main()


def test_the_size_of_the_contract_is_the_default() -> None:
    size = Size()
    assert (size.layers, size.hidden, size.vocab_size, size.batch, size.window) == (
        2,
        256,
        7300,
        20,
        35,
    )


# The size of the contract has windows that are read ahead of once in many, as 12 are.
@pytest.mark.usefixtures("_in_this_process")
@pytest.mark.parametrize("window", [3, 12])
def test_quick_json_is_one_object_with_the_names_of_the_contract(
    window: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bench, "QUICK_SECONDS", 0.0)
    small = ("--sizes", "1x8x30", "--windows", str(window), "--batches", "2")
    assert run(monkeypatch, "--quick", "--json", *small) == 0
    rates = json.loads(capsys.readouterr().out)
    contract = {"floor", "plain", "real", "synthetic"}
    assert {f"{name}_tokens_per_s" for name in contract} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())


def test_without_being_told_quick_measures_the_size_of_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(bench, "quick", lambda *what: asked.append(what) or {})
    assert run(monkeypatch, "--quick", "--json") == 0
    assert asked == [(Size(), Place("cpu", "fp32"))]


@pytest.mark.parametrize(
    ("rounds", "elapsed", "another"),
    [
        (1, 39.0, True),
        (20, 39.0, True),
        (20, 41.0, False),
        (4, 79.0, True),  # too few rounds yet
        (5, 41.0, False),
        (4, 81.0, False),  # a slow machine: enough is enough
        (2, 81.0, True),  # but no median of two
    ],
)
def test_rounds_end_in_time(rounds: int, elapsed: float, another: bool) -> None:
    assert measure._another_round(rounds, elapsed, 40.0) is another


@pytest.mark.parametrize("window", [3, 12])
def test_a_block_begins_with_a_reading_and_ends_before_the_next(window: int) -> None:
    """Else a block would cost more or less than its share, and a turn begin without a reading."""
    arm = build_arm("alternating adjoint", Size(1, 8, 30, batch=2, window=window), Place())
    coming = [arm.batcher.at(number).coming is not None for number in range(2 * arm.block)]
    first, second = coming[: arm.block], coming[arm.block :]
    assert first == second
    assert first[0]
    assert sum(first) == (arm.block if window == 3 else 1)


def test_the_floor_does_all_the_products_of_a_step(size: Size) -> None:
    """A multiply-add is two operations; each product comes back twice in the backward pass."""
    per_token = 2 * (size.layers * 2 * 4 * size.hidden**2 + size.hidden * size.vocab_size)
    step = floor.floor(size)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == 3 * size.tokens * per_token
    assert floor.flops(size) == 3 * size.tokens * per_token


def test_every_arm_learns(arms: Callable[..., dict[str, Any]]) -> None:
    """A rival that forgot half of its work would flatter."""
    for name, arm in arms("plain", "real", "synthetic adjoint").items():
        model = arm.model if name == "plain" else arm.learner.model
        before = [parameter.clone() for parameter in model.parameters()]
        arm.step()
        pairs = zip(before, model.parameters(), strict=True)
        assert all(not torch.equal(old, new) for old, new in pairs), name


def test_all_arms_read_the_same_text(arms: Callable[..., dict[str, Any]]) -> None:
    built = arms("plain", "real", "synthetic adjoint")
    plain, real, synthetic = built.values()
    for _ in range(3):
        first, second = real.read(), synthetic.read()
        assert torch.equal(first.inputs_TB, second.inputs_TB)
        inputs_TB, targets_TB = plain.read()
        # The lanes are the same; sglm's begin with <eos>, so that it is one token behind.
        assert torch.equal(inputs_TB, first.targets_TB)
        assert torch.equal(inputs_TB[1:], targets_TB[:-1])
        real.step()
        synthetic.step()


def test_learning_injects_nothing_and_synthetic_does(arms: Callable[..., dict[str, Any]]) -> None:
    built = arms("real", "learning mlp", "synthetic mlp")
    for arm in built.values():
        if isinstance(arm.estimator, LearnedEstimator):  # a calibrated factor is zero at first
            arm.estimator.injection.fixed_factor = torch.ones(())
        for _ in range(6):
            arm.step()
    real, learning, synthetic = (
        torch.cat([each.flatten() for each in arm.learner.model.parameters()])
        for arm in built.values()
    )
    assert torch.equal(real, learning)
    assert not torch.equal(real, synthetic)


@pytest.mark.parametrize("kind", ["adjoint", "mlp"])
def test_without_its_synthesizer_an_arm_is_the_real_one(
    arms: Callable[..., dict[str, Any]], kind: str
) -> None:
    """What a synthesizer costs is measured against that, on the same learner."""
    models = []
    for arm in arms("real", f"alternating {kind}").values():
        for _ in range(8):
            arm.step("real")
        models.append(list(arm.learner.model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*models, strict=True))
    arm.learner.model.zero_grad()
    estimator = arm.estimator
    estimator.injection.fixed_factor = torch.ones(())
    net = estimator.expected_row if kind == "adjoint" else estimator.synthesizer
    before = [parameter.clone() for parameter in net.parameters()]
    for _ in range(8):
        arm.step("learning")
    learned = zip(before, net.parameters(), strict=True)
    assert any(not torch.equal(one, other) for one, other in learned)


@pytest.mark.usefixtures("_in_this_process")
def test_quick_compares_within_one_process(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that do the same differ by several per cent, each by its luck."""
    asked: list[tuple[int, str | None]] = []
    seconds = Worker.seconds

    def spy(self: Any, windows: int, turn: str | None = None) -> float:
        asked.append((id(self), turn))
        return float(seconds(self, windows, turn))

    monkeypatch.setattr(Worker, "seconds", spy)
    monkeypatch.setattr(bench, "QUICK_SECONDS", 0.0)
    bench.quick(size, Place())
    turns: dict[int, list[str | None]] = {}
    for which, turn in asked:
        turns.setdefault(which, []).append(turn)
    plain, sglm = turns.values()
    assert set(plain) == {None}
    counts = {turn: sglm.count(turn) for turn in sglm}
    assert counts.keys() == {"real", "learning", "synthetic"}
    assert len(set(counts.values())) == 1


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("plain", {"synthesizer"}),
        ("real", {"synthesizer"}),
        ("learning adjoint", set()),
        ("synthetic adjoint", set()),
        ("synthetic mlp", set()),
        ("synthetic recurrent", set()),
        ("synthetic linear", set()),
    ],
)
def test_shares_name_every_part_and_add_up_to_one(
    arms: Callable[..., dict[str, Any]],
    name: str,
    absent: set[str],
) -> None:
    """Fails when the step calls something else than it did, and its time would go to `other`."""
    (arm,) = arms(name).values()
    shares = parts.shares(arm, torch.device("cpu"))
    assert list(shares) == [*parts.PARTS, "other"]
    assert {part for part, share in shares.items() if share == 0} == absent
    assert all(share >= 0 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)


def test_afterwards_everything_is_as_it_was(arms: Callable[..., dict[str, Any]]) -> None:
    (arm,) = arms("synthetic adjoint").values()
    before = [(getattr(each.owner, each.name), dict(vars(each.owner))) for each in arm.patches()]
    watch = parts.Stopwatch(torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt), watch.watching(arm.patches()):
        raise KeyboardInterrupt
    after = [(getattr(each.owner, each.name), dict(vars(each.owner))) for each in arm.patches()]
    assert [(function, members.keys()) for function, members in before] == [
        (function, members.keys()) for function, members in after
    ]


def test_no_moment_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Nested:
        block = 8

        def outer(self) -> None:
            clock[0] += 1
            self.inner()

        def inner(self) -> None:
            clock[0] += 10

        def step(self) -> None:
            clock[0] += 5
            self.outer()
            self.inner()

        def patches(self) -> list[Any]:
            return [Patch(self, "outer", "forward"), Patch(self, "inner", "loss")]

    monkeypatch.setattr(parts.time, "perf_counter", lambda: clock[0])
    shares = parts.shares(Nested(), torch.device("cpu"))
    assert shares["forward"] == pytest.approx(11 / 26)
    assert shares["loss"] == pytest.approx(10 / 26)
    assert shares["other"] == pytest.approx(5 / 26)


@pytest.mark.usefixtures("_in_this_process")
def test_a_case_says_all_of_every_arm(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--sizes", "1x8x30", "--windows", "3", "--batches", "2", "--seconds", "0"]
    arguments += ["--device", "cpu", "--arms", "real,synthetic linear", "--out", str(out)]
    assert run(monkeypatch, *arguments, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text(encoding="utf-8"))
    (case,) = printed["cases"]
    assert list(case["arms"]) == ["real", "synthetic linear"]
    arm = case["arms"]["synthetic linear"]
    low, high = arm["tokens_per_s_quartiles"]
    assert 0 < low <= arm["tokens_per_s"] <= high
    low, high = arm["over_real_quartiles"]
    assert low <= arm["over_real"] <= high
    assert arm["peak_memory_mb"] > 50  # Python and torch alone take more
    assert {"over_real", "of_floor", "shares", "ms_per_window"} <= arm.keys()
    assert all(value > 0 for value in case["floor"].values())

    # Again: nothing is left to measure; the table has a line for each arm.
    monkeypatch.setattr(measure, "measure_case", None)
    assert run(monkeypatch, *arguments) == 0
    table = capsys.readouterr().out
    assert "1 × 8, V = 30, B = 2, T = 3" in table
    assert "synthetic linear" in table
    assert f"{arm['tokens_per_s']:,.0f}" in table


def test_what_would_not_fit_is_skipped_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(measure, "measure", None)
    assert run(monkeypatch, "--sizes", "3x100000x1000000", "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert "skipped: needs about" in captured.out
    assert "skipped: needs about" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "2x256x"], "write whole numbers above 0"),
        (["--sizes", "2x17"], "write LAYERSxUNITSxVOCABULARY, or one of 2x256"),
        (["--windows", "5,none"], "write whole numbers above 0"),
        (["--arms", "plain,fast"], "no such arm; there are plain, plain prepared, real"),
        (["--quick", "--windows", "5,35"], "--quick measures one case"),
        (["--device", "cpu", "--precision", "fp16"], "needs a CUDA device"),
    ],
)
def test_a_wrong_wish_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_file_of_another_machine_is_not_added_to(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "bench.json"
    out.write_text(json.dumps({"machine": {"device": "abacus"}, "cases": []}), encoding="utf-8")
    assert run(monkeypatch, "--device", "cpu", "--out", str(out)) == 2
    assert "give another --out" in capsys.readouterr().err


def test_texts_are_long_enough_and_within_the_vocabulary(size: Size, tmp_path: Path) -> None:
    ids_N = random_text(size, tmp_path, 2**20 + 3)
    assert len(ids_N) == 2**20 + 3
    assert set(np.unique(ids_N)) == set(range(30))


@pytest.mark.parametrize(("name", "prepared"), [("plain", 0), ("plain prepared", 1), ("real", 1)])
def test_a_process_is_prepared_as_those_of_its_users_are(
    size: Size,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    prepared: int,
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(worker, "prepare_process", lambda: calls.append(None))
    task = Task(name, size, Place(), threads=1)
    requests = [asdict(task), ["seconds", 2], ["memory_mb"], ["shares"]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, requests)) + "\n"))
    worker.main()
    assert len(calls) == prepared
    answers = [json.loads(line)["value"] for line in capsys.readouterr().out.splitlines()]
    seconds, memory_mb, shares = answers
    assert seconds > 0
    assert memory_mb > 50
    assert "forward" in shares


def test_an_arm_has_a_process_of_its_own_from_any_folder(
    size: Size, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    task = Task("real", size, Place(), threads=1)
    with running([task]) as (arm,):
        assert arm.process.pid != os.getpid()
        assert arm.ask("seconds", 2) > 0
        assert 50 < arm.ask("memory_mb") < 2000  # Python and torch, and nothing of ours
    assert arm.process.returncode is not None


def test_an_arm_that_dies_is_a_case_that_is_skipped(
    size: Size, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the system kills what took the last of its memory."""
    monkeypatch.setattr(sys, "executable", "false")
    case = measure.measure_case(["real"], size, Place(), 0.0)
    assert "'real' ended with 1" in case["skipped"]


def test_an_exact_horizon_is_full_from_the_first_step(size: Size) -> None:
    """As if it had run for long: cost and memory of the first steps would flatter."""
    arm = build_arm("real", size, Place(), horizon=9)
    outputs, seen = arm.learner.model.outputs, []
    arm.learner.model.__dict__["outputs"] = lambda embedded_TBE, state: (
        seen.append(len(embedded_TBE)) or outputs(embedded_TBE, state)
    )
    for _ in range(3):
        arm.step()
    assert seen == [9, 9, 9]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# cuDNN says that sglm's weights are not in one block; slower, not wrong.
@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_measured_by_events(precision: str) -> None:
    place = Place("cuda", precision)
    size = Size(layers=1, hidden=64, vocab_size=500, batch=4, window=5)
    names = ["plain", "real", "synthetic adjoint"]
    case = measure.measure_case(names, size, place, seconds=0.0)
    assert "skipped" not in case, case
    assert all(value > 0 for value in case["floor"].values())
    for arm in case["arms"].values():
        # Events have a resolution of half a microsecond.
        assert all(share >= -1e-3 for share in arm["shares"].values())
        assert sum(arm["shares"].values()) == pytest.approx(1, abs=1e-3)
