"""Products, eigenpairs and the whole analysis of tiny models (needs curvlinops and SciPy)."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import sglm.analyze
from sglm.analyze.curvature import measure
from sglm.analyze.curvature.spectrum import gauss_newton, hessian, top_eigenpairs
from sglm.analyze.curvature.subspaces import overlaps
from sglm.cli.main import app
from sglm.config import parse_config
from sglm.config.load import config_to_toml
from sglm.errors import InputError, SglmError
from sglm.model.folder import save_model
from sglm.text.tokenizer import load_tokenizer
from tests.analyze.curvature.test_subspaces import random_rows
from tests.analyze.curvature.tiny_losses import brute_force, tiny_loss
from tests.extras.conftest import needs
from tests.tiny_models import make_network, make_store

needs("curvlinops")
needs("scipy")

NAMES = [f"layers.{layer}.{matrix}" for layer in (0, 1) for matrix in ("weight_ih", "weight_hh")]


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_matrices(name: str) -> None:
    window_loss = tiny_loss()
    weight = window_loss.features.get_parameter(name)
    for operator, matrix in zip(
        (hessian, gauss_newton), brute_force(window_loss, name), strict=True
    ):
        products = operator(window_loss, weight) @ np.eye(weight.numel())
        np.testing.assert_allclose(products, matrix, atol=1e-12)


def test_eigenpairs_of_a_matrix_of_known_spectrum() -> None:
    vectors = random_rows(200, 200)
    values = np.concatenate([[9.0, 7.0, 4.0], np.linspace(-20, 1, 197)])
    found = top_eigenpairs(vectors.T @ np.diag(values) @ vectors, 3)
    np.testing.assert_allclose(found.values_K, [9, 7, 4], rtol=1e-3)  # its tolerance
    assert np.allclose(overlaps(found.vectors_KP, vectors[:3]), 1, atol=1e-5)


def test_a_matrix_that_is_not_finite_is_said() -> None:
    for value in (np.nan, 0.0):
        with pytest.raises(SglmError, match="has the run diverged"):
            top_eigenpairs(np.full((50, 50), value), 3)


def test_top_eigenpairs_are_those_of_the_brute_force_matrices() -> None:
    window_loss = tiny_loss()
    weight = window_loss.features.get_parameter("layers.1.weight_ih")
    for operator, matrix in zip(
        (hessian, gauss_newton), brute_force(window_loss, "layers.1.weight_ih"), strict=True
    ):
        values, vectors = np.linalg.eigh(matrix)
        found = top_eigenpairs(operator(window_loss, weight), 2)
        np.testing.assert_allclose(found.values_K, values[:-3:-1], rtol=1e-3)
        assert np.isclose(overlaps(found.vectors_KP, vectors.T[:-3:-1])[-1], 1, atol=1e-5)


def write_run(
    path: Path, data: Path, *, seed: int, layers: int = 1, cutoffs: tuple[int, ...] = ()
) -> Path:
    """A run without a training: its model, at a cycle's end too, and its configuration."""
    tokenizer = load_tokenizer(data)
    for place, weights in (("model", seed), ("snapshots/cycle-000", seed + 10)):
        network = make_network(
            tokenizer.vocab_size, layers, tied=layers > 1, seed=weights, cutoffs=cutoffs
        )
        save_model(network, path / place, tokenizer.fingerprint)
        tokenizer.save(path / place)
    config = parse_config({"train": {"window": 2, "seed": seed % 2}}, "test")
    (path / "config.toml").write_text(config_to_toml(config))
    return path


@pytest.fixture(autouse=True)
def _few_eigenpairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products cost as much as large ones; three pairs are found in fewer."""
    monkeypatch.setattr(measure, "EIGENPAIRS", 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of some hundred tokens."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "held_out.txt").write_text("the cat sat\n")
    return make_store(folder, "word", folder / "held_out.txt").folder


def analyze(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["analyze", "curvature", *map(str, arguments)])


def test_the_command_shows_what_the_library_finds(tmp_path: Path, data: Path) -> None:
    run, out = write_run(tmp_path / "run", data, seed=1), tmp_path / "out"
    given = (run, "--data", data, "--tokens", 12, "--out", out)
    shown = analyze(*given, "--json")
    assert shown.exit_code == 0, shown.output
    assert "2 parts, about" in shown.stderr
    found = json.loads(shown.stdout)
    assert json.loads((out / "curvature.json").read_text()) == found
    assert (out / "curvature.png").read_bytes().startswith(b"\x89PNG")
    assert [each["weight"] for each in found["models"]] == ["ih 0", "hh 0"]
    for each in found["models"]:
        assert 0 < each["nll"] < 10
        top = each["gauss_newton"]
        assert top["values"] == sorted(top["values"], reverse=True)
        assert 0 < sum(top["values"]) < 1.5 * top["trace"]  # which is an estimate of 30 draws
        assert sum(top["gates"]) == pytest.approx(1)
        assert all(
            of_all >= mean for of_all, mean in zip(top["rank_one"], top["along_mean"], strict=True)
        )
        shares = [*top["along_mean"], *top["rank_one"], *each["hessian_gauss_newton"]]
        shares += [*each["expand"]["captured"], *each["reduce"]["captured"]]
        assert min(shares) >= 0
        assert max(shares) <= 1 + 1e-4  # products in float32

    again = analyze(*given)
    assert "2 parts, about 0:00" in again.stderr
    assert "layers.0" not in again.stderr, "what was measured before was measured again"
    lines = again.stdout.splitlines()
    assert lines[1].startswith("ih 0")
    assert max(map(len, lines)) <= 80
    assert lines[3].startswith("Of the observations of Wu et al. (2020), these ")


def test_what_does_not_fit_is_said_before_anything_starts(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "one", data, seed=1)
    other = write_run(tmp_path / "two", data, seed=2, layers=2)
    with pytest.raises(InputError, match="0 tokens cannot be computed"):
        sglm.analyze.curvature([run], data=data, tokens=0)
    with pytest.raises(InputError, match="two differs in size from one"):
        sglm.analyze.curvature([run, other], data=data, tokens=12)
    adaptive = write_run(tmp_path / "three", data, seed=3, cutoffs=(3, 8))
    with pytest.raises(InputError, match="three has an adaptive softmax"):
        sglm.analyze.curvature([adaptive], data=data, tokens=12)
    with pytest.raises(InputError, match="and 500 windows of 2 tokens take 1,101; give --data"):
        sglm.analyze.curvature([run], data=data)
    monkeypatch.setattr("sglm.analyze.analysis.available_bytes", lambda: 1000)
    with pytest.raises(InputError, match="analyze curvature would need about"):
        sglm.analyze.curvature([run], data=data, tokens=12, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
