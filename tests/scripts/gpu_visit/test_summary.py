"""From a visit's lines to a machine's file, and to what the defaults should be."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmarks import kernels
from scripts.gpu_visit import __main__ as entry
from scripts.gpu_visit.kernels import rehearsed_cases
from scripts.gpu_visit.summary import TIMED, proposals, speedups, summarize
from sglm.errors import InputError
from sglm.kernels import choice

MACHINE = {"part": "rates", "cell": "machine", "device": "a GPU", "capability": [9, 0]}


def visit(tmp_path: Path, *records: dict[str, Any], name: str = "visit.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def kernel(cell: str, speedup: float) -> dict[str, Any]:
    return {"part": "kernels", "cell": cell, "speedup": speedup}


def test_every_kernel_is_on_or_deleted_or_restricted_or_stays_off(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    path = visit(
        tmp_path,
        MACHINE,
        kernel("injection B=20", 3.0),
        kernel("injection B=80", 1.5),
        kernel("dropout B=20", 0.8),
        kernel("lstm B=20", 1.1),
        kernel("lstm B=80", 1.9),
        {"part": "kernels", "cell": "injection B=160", "error": "no room"},
    )
    told = summarize([path], "gpu-x", tmp_path)
    lines = dict(line.strip().split(": ", 1) for line in told.splitlines() if '": ' in line)
    on = 'Kernel(measured=Measured(device="a GPU", capability=(9, 0), speedup=1.50)),'
    assert lines['"sglm.dni.injection.injected_gradient"'] == on
    assert "delete it" in lines['"sglm.kernels.dropout.regularized_dropout"']
    # It needs 1.2 times: faster with 80 lanes alone.
    restricted = lines['"sglm.kernels.lstm.lstm_layer"']
    assert "can_run" in restricted
    assert "(lstm B=80)" in restricted
    written = json.loads((tmp_path / "benchmarks/gpu-x-gpu.json").read_text())
    assert written["kernels"]["lstm B=80"] == {"speedup": 1.9}
    assert "injection B=160" not in written["kernels"]
    assert all("not measured" in line for line in proposals({}, MACHINE))


def test_a_later_visit_adds_to_what_is_known_of_a_machine(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    before = visit(tmp_path, MACHINE, kernel("lstm B=20", 1.1), kernel("lstm B=80", 1.9))
    summarize([before], "gpu-x", tmp_path)
    # A visit of old code does not say of which generation the GPU is.
    machine = {name: value for name, value in MACHINE.items() if name != "capability"}
    after = visit(tmp_path, machine, kernel("lstm B=20", 2.5), name="later.jsonl")
    assert "capability=of that GPU" in summarize([after], "gpu-x", tmp_path)
    written = json.loads((tmp_path / "benchmarks/gpu-x-gpu.json").read_text())
    assert written["kernels"] == {"lstm B=20": {"speedup": 2.5}, "lstm B=80": {"speedup": 1.9}}


def test_cells_of_kernels_that_were_deleted_are_ignored() -> None:
    cells = {"recurrent read B=20": {"speedup": 0.5}, "lstm B=20": {"speedup": 2.0}}
    found = speedups(cells)
    assert found.keys() == choice.KERNELS.keys()
    assert found[TIMED["lstm"]] == {"lstm B=20": 2.0}
    assert sum(map(len, found.values())) == 1


def test_what_is_proposed_is_python_that_turns_the_kernel_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = TIMED["lstm"]
    cells = {"lstm B=20": {"speedup": 2.0}}
    line = next(line for line in proposals(cells, MACHINE) if name in line)
    proposed = eval("{" + line + "}", vars(choice))[name]
    assert proposed.on_by_default
    assert proposed.needed == choice.KERNELS[name].needed
    assert not replace(proposed, needed=2.5).on_by_default


def test_every_function_that_is_timed_belongs_to_a_kernel() -> None:
    assert {TIMED[case.name.split()[0]] for case in rehearsed_cases()} == choice.KERNELS.keys()
    assert kernels.LSTMS


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no cell"),
        ([MACHINE | {"rehearsal": True}], "rehearsal"),
        ([MACHINE, MACHINE | {"device": "another GPU"}], "one machine"),
        ([kernel("lstm B=20", 2.0)], "one machine"),
    ],
)
def test_what_is_no_visit_of_one_machine_is_refused(
    records: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        summarize([visit(tmp_path, *records)], "gpu-x", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--list"], 0, "visit1"),
        (["nonsense", "--rehearse"], 2, "no part or visit 'nonsense'"),
        (["bench", "--rehearse", "--only", "["], 2, "not a regular expression"),
        (["pack"], 2, "--data"),
        (["pack", "--data", "/nowhere"], 2, "/nowhere"),
        (["summary", "--name", "x"], 2, "FILE"),
        (["summary", "/nowhere", "--name", "x"], 2, "/nowhere"),
        (["kernels", "--rehearse", "--other", "/nowhere"], 2, "/nowhere"),
    ],
)
def test_what_is_asked_for_wrongly_is_said_in_one_line(
    arguments: list[str],
    code: int,
    message: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--out", str(tmp_path)])
    assert entry.main() == code
    output = capsys.readouterr()
    assert message in (output.out if code == 0 else output.err)
    assert code == 0 or output.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "visit1"])
    assert entry.main() == 2
    assert "--rehearse" in capsys.readouterr().err
