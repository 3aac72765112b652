"""A run's synthesizer as a function of states: what training would inject, unbounded."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sglm.train.build as build
from sglm.analyze.representations import fields
from sglm.analyze.representations.fields import (
    COMING_STEPS,
    Synthesis,
    check_text_for_places,
    checkpoint_of,
    estimated_field,
    exact_field,
    find_places,
    load_synthesis,
    true_loss,
)
from sglm.analyze.representations.implied_loss import (
    implied_differences,
    jacobian_norms,
    true_differences,
)
from sglm.analyze.subjects import find_subjects
from sglm.config import Config
from sglm.dni.learned import LearnedEstimator
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.text.store import TokenStore
from sglm.train.fit import fit

MakeConfig = Callable[..., Config]


@pytest.fixture(autouse=True)
def _few_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "PLACES", 6)


def synthesis_of(config: Config, store: TokenStore) -> Synthesis:
    """As `load_synthesis` makes one, with random weights."""
    torch.set_default_dtype(torch.float64)
    try:
        # So wide that an adjoint's residual is exact.
        vocab_size = store.tokenizer().vocab_size
        shape = ModelShape(
            vocab_size=vocab_size, layers=2, hidden=vocab_size, embedding=vocab_size, tied=True
        )
        model = LSTMLanguageModel(shape).eval()
        model.embedding.data.mul_(10)  # so that the loss depends on the state
        estimator = build.build_estimator(config, model)
    finally:
        torch.set_default_dtype(torch.float32)
    return Synthesis(model=model, estimator=estimator, config=config)


def make_config(tiny_config: MakeConfig, **synthesizer: Any) -> Config:
    settings = {"factor": 1.0, "trust_bound": False, **synthesizer}
    return tiny_config(schedule={"mode": "synthetic"}, synthesizer=settings)


def test_a_text_too_short_for_the_places_is_named(
    word_store: TokenStore, tiny_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tiny_config, kind="linear")
    check_text_for_places(word_store, config)
    monkeypatch.setattr(fields, "PLACES", 10**6)
    with pytest.raises(InputError, match="measurements at 1000000 places take"):
        check_text_for_places(word_store, config)


def test_an_exact_adjoint_is_the_gradient_of_the_loss(
    word_store: TokenStore, tiny_config: MakeConfig
) -> None:
    config = make_config(tiny_config, kind="adjoint", reach=COMING_STEPS)
    synthesis = synthesis_of(config, word_store)
    model = synthesis.model
    places = find_places(model, word_store, config)
    field, own_MS = estimated_field(synthesis, places), places.packed()
    torch.testing.assert_close(field(own_MS[:, None]), exact_field(model, places)(own_MS[:, None]))
    # A softmax's third derivatives times the square of a step, relative to the first.
    assert jacobian_norms(field, own_MS).rotation < 1e-8
    start_MS = own_MS.roll(1, dims=0)
    torch.testing.assert_close(
        implied_differences(field, start_MS, own_MS),
        true_differences(true_loss(model, places), start_MS, own_MS),
        rtol=0,
        atol=1e-3,  # nats; of a rule of sixth order in each of eight parts of the way
    )
    shorter = synthesis_of(make_config(tiny_config, kind="adjoint", reach=3), word_store)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            estimated_field(shorter, places)(own_MS[:, None]), field(own_MS[:, None])
        )


def test_a_linear_synthesizers_curl_is_its_matrixs(
    word_store: TokenStore, tiny_config: MakeConfig
) -> None:
    config = make_config(tiny_config, kind="linear")
    synthesis = synthesis_of(config, word_store)
    assert isinstance(synthesis.estimator, LearnedEstimator)
    weight_SS = next(iter(synthesis.estimator.synthesizer.parameters())).data
    places = find_places(synthesis.model, word_store, config)
    field = estimated_field(synthesis, places)
    assert math.isnan(jacobian_norms(field, places.packed()).rotation)  # it has learned nothing
    weight_SS.normal_()
    weight_SS.copy_(weight_SS + weight_SS.T)
    assert jacobian_norms(field, places.packed()).rotation < 1e-12
    weight_SS.normal_()
    # Independent entries; 6 places of 496 planes each.
    assert jacobian_norms(field, places.packed()).rotation == pytest.approx(0.5, abs=0.05)


def test_an_element_wise_synthesizer_reads_the_windows_before(
    word_store: TokenStore, tiny_config: MakeConfig
) -> None:
    config = make_config(tiny_config, kind="recurrent", hidden=4)
    synthesis = synthesis_of(config, word_store)
    estimator = synthesis.estimator
    assert isinstance(estimator, LearnedEstimator)
    with torch.no_grad():
        for parameter in estimator.synthesizer.parameters():
            parameter.normal_()
    places = find_places(synthesis.model, word_store, config)
    own_MS = places.packed()
    found_MPS = estimated_field(synthesis, places)(own_MS[:, None])
    memory = None
    for state in places.states[:-1]:
        memory = estimator.synthesizer(state.packed(), memory).recurrent_state
    right_MS = estimator.synthesizer(own_MS, memory).gradient_BS
    torch.testing.assert_close(found_MPS[:, 0], right_MS)
    # Given its memory it is a function of each coordinate by itself: the gradient of a sum.
    assert jacobian_norms(estimated_field(synthesis, places), own_MS).rotation < 1e-12


def test_what_a_checkpoint_holds_is_what_is_measured(
    word_store: TokenStore, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config(
        schedule={"mode": "synthetic", "cycles": [20.0]},
        synthesizer={"kind": "mlp", "hidden": 6, "probe_every": 2},
    )
    fit(config, word_store, tmp_path / "run")
    (subject,) = find_subjects([tmp_path / "run"])
    checkpoint = checkpoint_of(subject)
    assert checkpoint is not None
    synthesis = load_synthesis(subject, checkpoint)
    estimator, model = synthesis.estimator, synthesis.model
    assert isinstance(estimator, LearnedEstimator)
    kept = checkpoint.state["learner"]
    torch.testing.assert_close(model.embedding, kept["model"]["embedding"].double())
    ids_TB = torch.arange(20).view(5, 4)
    _, state = model.features(ids_TB, model.start_state(4))
    # Not times the calibrated factor, without a bound, in nats.
    predicted_BS = estimator.synthesizer(state.packed()).gradient_BS.detach()
    assert bool(predicted_BS.any())
    torch.testing.assert_close(estimator.estimate(state), predicted_BS * estimator.trust.unit)
    del kept["estimator"]
    with pytest.raises(InputError, match="is not a checkpoint of"):
        load_synthesis(subject, checkpoint)
