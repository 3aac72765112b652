"""Every part rehearsed once: what will run on a GPU runs here with tiny sizes and does not fail."""

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from scripts.gpu_visit import learning, other, speed, tests
from scripts.gpu_visit.cells import Cell, Context, perform
from scripts.gpu_visit.visits import PARTS, VISIT_SECONDS, VISITS, load_part
from sglm.model import softmax_loss


def context(tmp_path: Path, **named: Any) -> Context:
    named = {"earlier": {}, "deadline": time.monotonic() + 900} | named
    return Context(rehearsing=True, work=tmp_path, **named)


def reported(part: Any, where: Context) -> list[dict[str, Any]]:
    stream = io.StringIO()
    perform(part, where, stream)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# Deterministic mode is a process's; what it does is in tests/train/test_reproducible.py.
@pytest.mark.parametrize("name", sorted(PARTS.keys() - {"other"}))
def test_a_part_measures_all_of_its_cells(name: str, tmp_path: Path) -> None:
    *messages, last = reported(load_part(name), context(tmp_path))
    assert last == {"done": True}
    begun = [each["begins"] for each in messages if "begins" in each]
    cells = {each["cell"]: each for each in messages if "cell" in each}
    assert begun == list(cells) != []
    assert [each for each in cells.values() if "error" in each] == []
    if name == "bench":
        large = cells["large"]
        assert min(large[f"{turn}_ms"] for turn in speed.TURNS) > 0
        assert large["size"]["hidden"] == speed.TINY.hidden
        # Both ways of reading ahead: once in many windows, and at every one.
        assert large["size"]["window"] > cells["T=5"]["size"]["window"]
    if name == "learning":
        assert cells["alternating"]["modes"] == ["real", "synthetic"]
        assert cells["synthetic only"]["modes"] == ["synthetic"] * 2
        assert cells["restarts only"]["modes"] == ["real"] * 2
        assert all(len(cells[arm]["token_ppl"]) == 2 for arm in learning.ARMS)
    if name == "deterministic":
        assert cells["fp32"]["same_bits"] is True


def test_somebody_elses_code_is_timed_where_it_is_named(tmp_path: Path) -> None:
    assert reported(other.other, context(tmp_path)) == [{"done": True}]
    (tmp_path / "helper.py").write_text("CALLS = []\n")
    (tmp_path / "arm.py").write_text(
        "import helper\n"
        "def build(*, layers, hidden, vocab_size, batch, window, device):\n"
        "    return lambda: helper.CALLS.append((hidden, device))\n"
    )
    _, cell, _ = reported(other.other, context(tmp_path, other=tmp_path))
    assert cell["cell"] == "tiny"
    assert cell["step_ms"] > 0
    several = "\ndef build(**size):\n    return {'real': list, 'synthetic': list}\n"
    (tmp_path / "arm.py").write_text(several)
    _, cell, _ = reported(other.other, context(tmp_path, other=tmp_path))
    assert {"real_ms", "synthetic_ms"} <= cell.keys()
    (tmp_path / "arm.py").unlink()
    _, cell, _ = reported(other.other, context(tmp_path, other=tmp_path))
    assert "arm.py" in cell["error"]


def test_what_is_known_is_not_measured_again_and_an_error_stops_nothing(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise ValueError("no room")

    cells = [
        Cell(name="known", measure=fails),
        Cell(name="bad", measure=fails),
        Cell(name="good", measure=lambda: {"ms": 1.0}),
    ]
    messages = reported(lambda _: cells, context(tmp_path, earlier={"known": {}}))
    assert [each["begins"] for each in messages if "begins" in each] == ["bad", "good"]
    assert messages[1]["error"] == "ValueError: no room"
    assert messages[3]["ms"] == 1.0


def test_a_lost_device_ends_the_process_without_being_done(tmp_path: Path) -> None:
    def fails() -> dict[str, Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cells = [Cell(name="bad", measure=fails), Cell(name="good", measure=dict)]
    messages = reported(lambda _: cells, context(tmp_path))
    assert [each["begins"] for each in messages if "begins" in each] == ["bad"]
    assert {"done": True} not in messages


def test_the_bench_is_thirty_cells_at_most_the_most_important_first() -> None:
    cases = speed.bench_cases(rehearsing=False)
    assert len(cases) <= 30
    assert len({name for name, *_ in cases}) == len(cases)
    _, arm, size, place = cases[0]
    assert (size.layers, size.hidden, size.vocab_size, size.window) == (3, 1150, 33_278, 70)
    assert (arm, place.precision) == ("alternating adjoint", "bf16")
    places = {(place.precision, place.tf32, place.cuda_graph) for *_, place in cases}
    assert {("fp32", False, False), ("fp32", True, False), ("fp16", False, False)} <= places
    assert {size.window for _, _, size, _ in cases} == {5, 35, 70}


def test_device_time_counts_once() -> None:
    """An operation of torch carries the time of its kernels, which are events themselves."""
    kernel = SimpleNamespace(device_type=DeviceType.CUDA, is_user_annotation=False)
    operation = SimpleNamespace(device_type=DeviceType.CPU, is_user_annotation=False)
    marked = SimpleNamespace(device_type=DeviceType.CUDA, is_user_annotation=True)
    assert [speed.is_of_the_device(each) for each in (kernel, operation, marked)] == [
        True,
        False,
        False,
    ]


def test_chunks_of_the_loss_are_as_before_afterwards() -> None:
    before = dict(softmax_loss.CHUNK_ENTRIES)
    speed._chunked(speed.TINY, speed.Place(), 2**20)
    assert before == softmax_loss.CHUNK_ENTRIES


def test_visits_are_made_of_parts_that_fit_into_their_time() -> None:
    for parts in VISITS.values():
        assert set(parts) <= PARTS.keys()
        assert sum(PARTS[name].limits.part for name in parts) <= VISIT_SECONDS + 30
    assert VISIT_SECONDS < 8 * 60


def test_every_file_with_gpu_tests_is_found() -> None:
    files = tests.files_with_gpu_tests()
    assert {"tests/gpu/test_cuda.py", "tests/kernels/test_kernels.py"} <= set(files)
    assert "tests/text/test_store.py" not in files


def test_only_the_cells_that_are_asked_for_are_measured(tmp_path: Path) -> None:
    def part(context: Context) -> list[Cell]:
        return [Cell(name=name, measure=dict) for name in ("large", "large graph", "medium")]

    lines = reported(part, context(tmp_path, only="^large$|med"))
    assert [line["begins"] for line in lines if "begins" in line] == ["large", "medium"]


def test_sizes_of_which_none_can_be_timed_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*arguments: object) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(learning, "_epoch_seconds", no_room)
    lines = reported(learning.learning, context(tmp_path, only="^fit$"))
    assert any("no size could be timed" in line.get("error", "") for line in lines)


def test_a_run_that_was_stopped_before_its_first_validation_has_an_empty_curve(
    tmp_path: Path,
) -> None:
    found = learning.curve(tmp_path / "metrics.jsonl")
    assert found == {"token_ppl": [], "steps": [], "modes": [], "train_seconds": 0.0}
