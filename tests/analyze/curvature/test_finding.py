"""What is said of measurements, and what is needed for them."""

import builtins
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglm.analyze import curvature
from sglm.analyze.curvature import analysis
from sglm.analyze.curvature.analysis import CurvatureAnalysis
from sglm.analyze.curvature.comparison import compare, pairs_of
from sglm.analyze.curvature.finding import CurvatureFinding
from sglm.analyze.curvature.groups import MatrixMeasurement
from sglm.analyze.curvature.kronecker import Factors
from sglm.analyze.curvature.measure import describe_eigenpairs, mean_share
from sglm.analyze.curvature.subspaces import Array, Eigenpairs, packed
from sglm.errors import InputError
from tests.analyze.curvature.test_subspaces import random_rows
from tests.analyze.test_subjects import write_run
from tests.tiny_models import make_store


def kept(rows_KP: Array, outputs: Array, inputs: Array) -> dict[str, Any]:
    """As `WeightMeasurer` keeps it."""
    return {
        "hessian": packed(rows_KP),
        "gauss_newton": packed(rows_KP),
        "outputs": packed(outputs),
        "inputs": packed(inputs),
    }


def measured(
    subject: str, *, seed: int, share: float, rows_KP: Array, cycle: str | None = None
) -> MatrixMeasurement:
    """A matrix of 8 × 3 weights in which everything is as large as `share`."""
    of = {"values": [2.0, 1.0], "rank_one": [share, share], "along_mean": [share, share]}
    values: dict[str, Any] = {name: dict(of) for name in ("hessian", "gauss_newton")}
    for name in ("expand", "reduce"):
        values[name] = {"gauss_newton": [share, share]}
    values |= {"hessian_gauss_newton": [share, share], "inputs": {"mean_share": share}}
    values |= {"shape": [8, 3], "kept": kept(rows_KP, np.eye(8), np.eye(3))}
    return MatrixMeasurement(
        subject=subject, cycle=cycle, seed=seed, mode="real", weight="ih 0", values=values
    )


def test_means_over_models_become_verdicts_and_a_sentence() -> None:
    rows = random_rows(4, 24)
    finding = CurvatureFinding(
        measurements=[
            measured("one", seed=0, share=0.9, rows_KP=rows[:2]),
            measured("two", seed=0, share=0.5, rows_KP=rows[:2]),
            measured("three", seed=1, share=0.4, rows_KP=rows[2:]),
        ],
        windows=4,
        steps=5,
    )
    row = dict(zip(*finding.rows(), strict=True))
    assert row["rank1"] == "0.60+"
    assert (row["seed="], row["seed≠"]) == ("1.00+", "0.00-")
    hold, do_not = finding.summary().split("hold in no matrix")
    assert "models of one seed share" in hold
    assert "models of different seeds share" in do_not
    assert finding.as_json()["groups"][0]["agrees"]["other_seed"] is False


def test_of_a_single_model_nothing_is_said_about_others() -> None:
    one = measured("one", seed=0, share=0.2, rows_KP=random_rows(2, 24))
    finding = CurvatureFinding(measurements=[one], windows=4, steps=5)
    assert finding.rows()[1][-2:] == ["·", "·"]
    assert "models of" not in finding.summary()
    assert math.isnan(finding.groups[0].observed["same_seed"])
    assert finding.as_json()["groups"][0]["agrees"]["same_seed"] is None


def test_snapshots_make_a_row_for_each_cycle() -> None:
    rows = random_rows(2, 24)
    cycles = {"cycle-000": 0.9, "cycle-001": 0.3}
    finding = CurvatureFinding(
        measurements=[
            measured(f"{run}@{cycle}", seed=0, share=share, rows_KP=rows, cycle=cycle)
            for run in ("one", "two")
            for cycle, share in cycles.items()
        ],
        windows=4,
        steps=5,
    )
    table = {row[0]: dict(zip(finding.rows()[0], row, strict=True)) for row in finding.rows()[1:]}
    assert {name: row["exp"] for name, row in table.items()} == {
        "ih 0, 000": "0.90+",
        "ih 0, 001": "0.30-",
    }
    assert len(finding.groups[0].pair_overlaps) == 1
    assert "hold in some matrices: Hessian" in finding.summary()


@pytest.mark.parametrize(("snapshots", "cycle"), [(False, None), (True, "cycle-000")])
def test_a_run_is_no_snapshot_because_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, snapshots: bool, cycle: str | None
) -> None:
    monkeypatch.setattr(analysis, "check_installed", lambda: None)
    (tmp_path / "held_out.txt").write_text("the cat sat\n", encoding="utf-8")
    store = make_store(tmp_path, "word", tmp_path / "held_out.txt")
    run = write_run(tmp_path / "run@2", store.tokenizer(), snapshots=1)
    (run / "config.toml").write_text("[train]\nwindow = 2\n")
    of_run = CurvatureAnalysis([run], data=store.folder, snapshots=snapshots, tokens=12)
    name = "run@2@cycle-000" if snapshots else "run@2"
    finding = of_run.finding({f"{name}-{weight.name}": {} for weight in of_run.weights})
    assert {each.cycle for each in finding.measurements} == {cycle}


def test_without_pairs_no_spectrum_is_computed() -> None:
    assert compare({"one": {}}, pairs_of({"one": 5})) == []


def test_models_are_compared_by_eigenvectors_and_by_kronecker_products() -> None:
    rows, turn = random_rows(4, 24), random_rows(3, 3)
    outputs, inputs = np.diag([3.0, 2.0, 1.0]), np.diag([10.0, 0.1, 0.01])
    models = {
        "one": kept(rows[:2], outputs, inputs),
        "two": kept(rows[[0, 3]], outputs, inputs @ turn),
    }
    (pair,) = compare(models, pairs_of({"one": 5, "two": 5}))
    assert pair["same_seed"]
    assert np.allclose(pair["gauss_newton"], [1, 0.5], atol=1e-3)
    # Three outer products with each model's first input, then more: all of the space in the end.
    expected = {1: turn[0, 0] ** 2, 3: turn[0, 0] ** 2, 9: 1.0}
    found = dict(zip(pair["sizes"], pair["kronecker"], strict=True))
    assert found[1] == pytest.approx(expected[1], abs=2e-3)  # float16
    assert found[3] == pytest.approx(expected[3], abs=2e-3)


def test_what_is_described_of_planted_eigenvectors() -> None:
    mean = np.array([0.0, 2.0, 0.0])
    towards_mean = np.outer(np.eye(8)[0], [0, 1.0, 0])  # in the input gate
    away = np.outer(np.eye(8)[7], [1.0, 0, 0])  # in the output gate
    pairs = Eigenpairs(np.array([2.0, 1.0]), np.stack([towards_mean.ravel(), away.ravel()]))
    found = describe_eigenpairs(pairs, (8, 3), mean)
    assert found["along_mean"] == [1, 0]
    assert found["rank_one"] == pytest.approx([1, 1])
    assert found["gates"] == [0.5, 0, 0, 0.5]
    inputs = np.diag([1.0, 4.0, 3.0])  # the mean's square is 4 of 8
    shares = mean_share(Factors(outputs_OO=np.eye(2), inputs_II=inputs), mean)
    assert shares == pytest.approx({"mean_share": 0.5, "first_share": 0.5, "first_along_mean": 1})


def test_missing_packages_are_named_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importing = builtins.__import__

    def fails(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "curvlinops":
            raise ModuleNotFoundError("No module named 'curvlinops'", name="curvlinops")
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fails)
    with pytest.raises(InputError, match=r'needs curvlinops; pip install "sglm\[analyze\]"'):
        curvature([tmp_path])
