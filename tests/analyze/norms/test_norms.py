"""Norms are those that training logged; sharpness is known where the Hessian is."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sglm.analyze import norms
from sglm.analyze.norms.analysis import decay_of, lowest_perplexity, validations_with_norms
from sglm.analyze.norms.finding import NormsFinding
from sglm.analyze.norms.measure import relative_sharpness
from sglm.config import Config, OptimizerConfig
from sglm.errors import InputError
from sglm.optim.precision import unchecked_precision
from sglm.text.store import TokenStore
from sglm.train.loop import train

MakeConfig = Callable[..., Config]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def two_matrices() -> list[Tensor]:
    return [torch.randn(3, 4, generator=seeded()).double(), torch.full((5, 2), 0.3).double()]


def test_sharpness_of_a_round_bowl_is_exact_in_every_direction() -> None:
    """½ Σ h‖W − a‖²: tr(H) / n is h, whatever a."""
    matrices, bends = two_matrices(), (2.0, 0.5)
    before = [each.clone() for each in matrices]

    def loss() -> float:
        pairs = zip(bends, matrices, strict=True)
        return float(sum(bend / 2 * (each - 1.7).square().sum() for bend, each in pairs))

    expected = sum(
        bend * float(each.square().sum()) for bend, each in zip(bends, matrices, strict=True)
    )
    found = relative_sharpness(loss, matrices, generator=seeded(), directions=1)
    # A difference of numbers of size 10 over ε²: 1e-16 · 10 / 0.05².
    assert found == pytest.approx(expected, rel=1e-10)
    # Put back by copying, so bit for bit.
    assert all(torch.equal(*pair) for pair in zip(matrices, before, strict=True))


def test_sharpness_of_a_long_bowl_is_the_mean_over_directions() -> None:
    matrix = two_matrices()[0]
    bends = torch.arange(12).double().reshape(3, 4)
    found = relative_sharpness(
        lambda: float((bends / 2 * matrix.square()).sum()),
        [matrix],
        generator=seeded(),
        directions=2000,
    )
    # Its spread over directions is about 0.3 of it: four standard errors.
    assert found == pytest.approx(float(matrix.square().sum() * bends.mean()), rel=0.03)


def test_sharpness_does_not_see_a_scale_that_the_function_does_not_see() -> None:
    def sharpness(scale: float) -> float:
        matrix = scale * two_matrices()[0]

        def loss() -> float:
            unit = matrix / matrix.norm()
            return float((unit[0] * unit[1]).sum().exp() + unit[2, 0] ** 4)

        return relative_sharpness(loss, [matrix], generator=seeded())

    assert sharpness(1.0) != 0.0
    assert sharpness(100.0) == pytest.approx(sharpness(1.0), rel=1e-9)


def test_weights_are_put_back_when_a_loss_fails() -> None:
    matrices = two_matrices()
    before, calls = [each.clone() for each in matrices], iter(range(9))

    def loss() -> float:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt):
        relative_sharpness(loss, matrices, generator=seeded())
    assert all(torch.equal(*pair) for pair in zip(matrices, before, strict=True))


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({}, "none"),
        ({"weight_decay": 0.1}, "decay 0.1"),
        ({"weight_decay": 0.1, "weight_decay_until": 0.25}, "early decay 0.1"),
        ({"weight_decay": 1e-4, "kind": "adam"}, "L2 0.0001"),
        ({"weight_decay_until": 0.25}, "none"),
    ],
)
def test_kinds_of_decay_have_names(settings: dict[str, Any], word: str) -> None:
    assert decay_of(OptimizerConfig(**settings)) == word


def test_the_lowest_perplexity_is_that_of_all_validations(tmp_path: Path) -> None:
    lines = [
        {"step": 1, "lr": 1, "token_ppl": 20.0, "norms": {"a": {"weight": 1, "update": 1}}},
        {"step": 2, "lr": 1, "token_ppl": 16.0, "norms": None},
        {"step": 3, "lr": 1, "token_ppl": None},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lowest_perplexity(tmp_path) == 16.0
    assert [line["step"] for line in validations_with_norms(tmp_path)] == [1]


def test_a_run_that_diverged_is_not_the_best() -> None:
    def found(name: str, ppl: float, norms: dict[str, float]) -> dict[str, Any]:
        training = [{"step": 1, "layers": {"a": norms}}]
        snapshots = [{"sharpness": {"all": 0.1}}]
        return {"run": name, "decay": "none", "training": training, "lowest_ppl": ppl,
                "snapshots": snapshots}  # fmt: skip

    runs = [
        found("bad", math.nan, {"update": 1.0}),
        found("good", 20.0, {"weight": 2.0, "update": 1}),
    ]
    finding = NormsFinding(runs=runs, overall="all")
    assert "The lowest perplexity is that of good, 20.00" in finding.summary()
    assert finding.rows()


def run(out: Path, store: TokenStore, config: Config) -> Path:
    train(
        config,
        store,
        out,
        precision=unchecked_precision("fp32", torch.device("cpu")),
        console=io.StringIO(),
    )
    return out


def test_runs_are_summed_up_and_snapshots_measured(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    runs = [
        run(
            tmp_path / name,
            word_store,
            tiny_config(
                schedule={"mode": "real"},
                optimizer={"kind": "adam", "weight_decay": decay, "learning_rate": 0.02},
            ),
        )
        for name, decay in (("none", 0.0), ("strong", 0.1))
    ]
    norms(runs[:1], out=tmp_path / "out")
    parts: list[str | None] = []
    finding = norms(runs, out=tmp_path / "out", report=lambda at: parts.append(at.part))
    # what was measured before is not measured again
    assert parts == ["strong@cycle-000", "strong@cycle-001", None]
    none, strong = finding.as_json()["runs"]
    assert (none["decay"], strong["decay"]) == ("none", "L2 0.1")
    assert none["overall"]["l2_share"] == 0.0
    assert strong["overall"]["l2_share"] > 0.1
    assert strong["overall"]["last"] < none["overall"]["last"]
    for each, folder in ((none, runs[0]), (strong, runs[1])):
        assert [snapshot["name"] for snapshot in each["snapshots"]] == ["cycle-000", "cycle-001"]
        assert set(each["snapshots"][0]["sharpness"]) == {
            "embedding", "layers.0", "layers.1", "all",
        }  # fmt: skip
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["norms"] for line in lines] == [one["layers"] for one in each["training"]]
        last = [norm["weight"] for norm in lines[-1]["norms"].values()]
        assert each["overall"]["last"] == pytest.approx(math.hypot(*last))
    assert finding.summary().startswith("strong ends with the smallest weights")
    assert [row[:2] for row in finding.rows()[1:]] == [["none", "none"], ["strong", "L2 0.1"]]
    assert all(len("  ".join(row)) <= 80 for row in finding.rows())
    assert (tmp_path / "out/norms.png").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a run"),
        ('{"step": 3, "lr": 0.1, "token_ppl": 2.0}\n', "logged no norms; train it again"),
        ('{"step": 3, "norms": {"a": {"weight": 1.0}}}\n', "damaged .*train the run again"),
        ('{"step": 3, "lr": 1, "token_ppl": 2, "norms": [1]}\n', "damaged .*train the run again"),
        ("[" * 100_000, "damaged .*train the run again"),
    ],
)
def test_a_run_that_tells_no_norms_is_named(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        validations_with_norms(tmp_path)


def test_a_picture_says_that_no_run_has_an_l2_term_and_counts_snapshots_in_whole_numbers() -> None:
    layers = {"embedding": {"weight": 1.0, "update": 0.1, "effective_rate": 0.1}}
    log = [{"step": step, "lr": 0.1, "token_ppl": 9.0, "layers": layers} for step in (1, 2)]
    snapshots = [{"name": f"cycle-{n}", "sharpness": {"all": 0.1 + n}} for n in range(2)]
    run = {"run": "run", "decay": "none", "training": log, "snapshots": snapshots}
    figure = Figure()
    NormsFinding(runs=[run], overall="all").draw(figure)
    _, _, share, sharpness = figure.axes
    assert [each.get_text() for each in share.texts] == ["no run has an L2 term"]
    assert all(tick == int(tick) for tick in sharpness.get_xticks())
