"""Estimators whose variance, bias and worth are known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglm.analyze.gradients.analysis import (
    PARTS,
    GradientsAnalysis,
    ReadingExtent,
    gradients_analysis,
    measure_gradients,
)
from sglm.analyze.gradients.finding import GradientsFinding
from sglm.analyze.gradients.measure import LONG, SYNTHETIC, TRUNCATED, sum_gradients
from sglm.analyze.gradients.values import discounted_nats
from sglm.analyze.reading import WARM_UP, future_state_gradients, read
from sglm.analyze.subjects import find_subjects
from sglm.analyze.trained import Trained
from sglm.config import parse_config
from sglm.config.load import config_to_toml
from sglm.dni.estimator import PlainTruncation, StateGradientEstimator
from sglm.errors import InputError
from sglm.text.store import TokenStore
from tests.analyze.known import AHEAD, Future, N, T, network, some_text
from tests.analyze.test_subjects import write_run

EXTENT = ReadingExtent(batch=2, window=T, windows=N, ahead=AHEAD)
REACHES = [1, 2, AHEAD]
# Every kind is computed on its own, and float32 holds the sums.
CLOSE = 1e-5


def measured(estimator: StateGradientEstimator | None) -> dict[str, Any]:
    config = parse_config(
        {"train": {"batch": 2, "window": T}, "synthesizer": {"reach": AHEAD, "every": 1}}, "test"
    )
    trained = Trained(model=network(), config=config, estimator=estimator, missing="", moments=None)
    text = some_text(EXTENT.steps, PARTS * EXTENT.batch)
    return measure_gradients(trained, text, extent=EXTENT, reaches=REACHES)


def near(found: list[float], value: float) -> bool:
    return all(abs(each - value) < CLOSE for each in found)


def test_the_exact_gradient_has_no_bias_and_is_worth_the_long_horizon() -> None:
    found = measured(Future(AHEAD))
    synthetic = found["gradients"][SYNTHETIC]
    for space, error in (("parameters", "bias"), ("states", "error")):
        assert near(synthetic[space]["cosine"], 1)
        assert near(synthetic[space]["norm"], 1)
        assert near(synthetic[space][error], 0)
    for each in found["by_part"].values():
        assert near(each["cosine"], 1)
        assert near(each["error"], 0)
    assert found["worth"]["states"][0] == pytest.approx(T + AHEAD, abs=1e-3)
    assert [each["reach"] for each in found["by_distance"]] == REACHES


@pytest.mark.parametrize("reach", [1, 2])
def test_the_gradient_of_a_real_horizon_is_worth_just_that(reach: int) -> None:
    found = measured(Future(reach))
    for space in ("parameters", "states"):
        # each drawing of the bootstrap too: the two are the same vectors
        assert found["worth"][space] == pytest.approx([T + reach] * 3, abs=1e-3)
    of_real = found["gradients"][f"exact {T + reach}"]["parameters"]["bias"]
    assert near(found["gradients"][SYNTHETIC]["parameters"]["bias"], of_real[0]) or of_real[0] > 0
    at_reach = found["by_distance"][REACHES.index(reach)]
    assert near(at_reach["error"], 0)
    assert found["by_distance"][-1]["error"][0] > 0.05


def test_of_plain_truncation_nothing_is_seen_in_the_states() -> None:
    found = measured(PlainTruncation())
    synthetic, truncated = (found["gradients"][kind] for kind in (SYNTHETIC, TRUNCATED))
    assert synthetic["states"]["norm"] == [0, 0, 0]
    assert synthetic["states"]["error"] == truncated["states"]["error"] == [1, 1, 1]
    assert all(math.isnan(each) for each in synthetic["states"]["cosine"])
    assert synthetic["parameters"]["bias"] == pytest.approx(truncated["parameters"]["bias"])
    assert synthetic["parameters"]["bias"][0] > 0.01
    assert found["worth"]["states"] == [T] * 3
    assert found["worth"]["parameters"] == pytest.approx([T] * 3, abs=1e-3)


def test_a_multiple_of_the_exact_gradient_has_its_slope() -> None:
    found = measured(Future(AHEAD, factor=0.5))
    synthetic = found["gradients"][SYNTHETIC]
    assert near(synthetic["states"]["cosine"], 1)
    assert near(synthetic["states"]["norm"], 0.5)
    assert near(synthetic["states"]["error"], 0.25)
    assert synthetic["parameters"]["added_slope"] == pytest.approx([2, 2, 2], rel=1e-4)
    truncated = found["gradients"][TRUNCATED]["parameters"]["bias"][0]
    # half of what truncation leaves out is there
    assert synthetic["parameters"]["bias"][0] == pytest.approx(truncated / 4, rel=1e-3)


def test_the_cosine_of_means_grows_with_the_batches_in_them() -> None:
    variance = measured(None)["variance"]
    assert variance["batches"] == [1, 2, 4]
    assert set(variance["cosine"]) == {TRUNCATED, LONG}
    for of_kind in variance["cosine"].values():
        values = [each[0] for each in of_kind]
        assert values == sorted(values)
        assert 0 < values[0] < values[-1] < 1
    for kind, count in variance["batches_for_half"].items():
        last = variance["cosine"][kind][-1][0]
        # signal / (signal + noise/n)
        assert 1 / (1 + count / 4) == pytest.approx(last)


def test_without_an_estimator_truncation_alone_is_looked_at() -> None:
    found = measured(None)
    assert set(found["gradients"]) == {TRUNCATED, *(f"exact {T + reach}" for reach in REACHES)}
    assert found["worth"] is found["by_part"] is found["by_distance"] is None


def test_what_does_not_fit_is_said_before_anything_starts(
    tmp_path: Path, word_store: TokenStore
) -> None:
    run = write_run(tmp_path / "run")
    subjects = find_subjects([run])
    with pytest.raises(InputError, match="not only its model"):
        GradientsAnalysis(subjects=subjects, store=word_store)
    (run / "config.toml").write_text("[train]\nbatch = 4\nwindow = 5\n")
    wrong: Any = 7
    with pytest.raises(InputError, match="a token store must be given as a path"):
        gradients_analysis([run], data=wrong)
    with pytest.raises(InputError, match="reach = 0: must be 1 at least"):
        GradientsAnalysis(subjects=subjects, store=word_store, reach=0)
    tokens = PARTS * 4 * (WARM_UP + 10 + 40)
    with pytest.raises(
        InputError, match=rf"64 lanes of 100 steps for run \(16 times .* take {tokens:,}; give"
    ):
        GradientsAnalysis(subjects=subjects, store=word_store)
    fits = GradientsAnalysis(subjects=subjects, store=word_store, reach=5, windows=64)
    assert fits.extent(subjects[0].config()).windows == 1
    assert fits.reaches == [1, 2, 5]
    read_seldom = parse_config(
        {"train": {"batch": 4, "window": 5}, "synthesizer": {"every": 3}}, "test"
    )
    assert fits.extent(read_seldom).windows == 3  # a whole stretch


def test_after_long_windows_there_is_text_to_compare_a_critics_values_with(
    tmp_path: Path, word_store: TokenStore
) -> None:
    """A whole window, else what came would be the same everywhere."""
    run = write_run(tmp_path / "run")
    train, synthesizer = {"batch": 1, "window": 70}, {"kind": "critic"}
    config = parse_config({"train": train, "synthesizer": synthesizer}, "test")
    (run / "config.toml").write_text(config_to_toml(config))
    analysis = GradientsAnalysis(subjects=find_subjects([run]), store=word_store, windows=1)
    extent = analysis.extent(config)
    assert extent.ahead == 70
    model, text = network(), some_text(extent.steps - WARM_UP, 2)
    reading = read(model, text, skipped=0, window=70, windows=extent.windows)
    assert len(np.unique(discounted_nats(model, reading, 0.9))) == 2 * extent.windows


def test_the_products_of_states_are_summed_lane_by_lane() -> None:
    model, lanes = network(), 2
    text = some_text(N * T + AHEAD, 2 * lanes)
    reading = read(model, text, skipped=0, window=T, windows=N)
    sums = sum_gradients(model, reading, [1, AHEAD], synthetic_NLS=None, lanes=lanes)
    width = model.shape.widths[0]
    for lane in range(2 * lanes):
        own = slice(lane, lane + 1)
        found_RNS = future_state_gradients(model, reading, [1, AHEAD], windows=range(N), lanes=own)
        of_first = found_RNS[:, :, :width].flatten(1)  # hidden of the first layer
        right = (of_first @ of_first.T).numpy()
        np.testing.assert_allclose(sums.states_LQKK[lane, 0], right, rtol=1e-9)  # float64


def test_of_too_few_windows_it_says_so_and_no_numbers() -> None:
    run = {"run": "a", "window": T, "windows": 64, **measured(Future(AHEAD))}
    finding = GradientsFinding(runs=[run])
    assert "worth a real horizon of" in finding.summary()
    worth = run["worth"]["parameters"]
    run["worth"]["parameters"] = [worth[0], T, worth[2]]  # its interval begins at truncation's
    assert f"worth more than those {T} steps is uncertain" in finding.summary()
    nothing = [math.nan] * 3  # as where the square of a mean came out negative
    run["worth"]["parameters"] = nothing
    for kind in (TRUNCATED, SYNTHETIC):
        run["gradients"][kind]["parameters"] = dict.fromkeys(("cosine", "norm", "bias"), nothing)
    assert "a: 64 windows are too few" in finding.summary()
    assert "give more --windows" in finding.summary()
    assert "nan" not in str([finding.rows(), finding.summary()])
