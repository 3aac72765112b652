"""What a run says of its synthesizer at the end, and a runaway: provoked, noticed, ended."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm.config import Config
from sglm.dni.estimator import EstimatorStatus
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import LinearSynthesizer, Synthesizer
from sglm.optim.precision import unchecked_precision
from sglm.optim.schedule import Mode
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train import loop
from sglm.train.closing_sentence import closing_sentence
from sglm.train.learner import Learner
from sglm.train.runaway import RunawayWatch
from tests.conftest import make_text
from tests.train.test_loop import MakeConfig, stop_at

CPU = torch.device("cpu")
STEPS = 700
UNTAMED = {"kind": "mlp", "factor": 1.0, "trust_bound": False, "probe_every": 10_000}
TAMED = {"kind": "mlp", "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def char_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("chars")
    (folder / "text.txt").write_text(make_text(800), encoding="utf-8")
    return prepare([str(folder / "text.txt")], folder / "store", StoreSettings(tokenizer="char"))


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that forget nearly nothing from step to step: a state gradient passes back through
    a window undiminished, so that a bootstrapped error is not damped."""
    build_learner = loop.build_learner

    def build(*arguments: Any, **named: Any) -> Learner:
        learner = build_learner(*arguments, **named)
        with torch.no_grad():
            for layer in learner.model.layers:
                units = layer.weight_hh.shape[1]
                layer.bias[units : 2 * units] += 4  # forget gates: 0.99
        return learner

    monkeypatch.setattr(loop, "build_learner", build)


def provoking(tiny_config: MakeConfig, **synthesizer: object) -> Config:
    return tiny_config(
        model={"layers": 1, "hidden": 64},
        train={"batch": 16, "window": 1, "log_every_steps": 50},
        optimizer={"learning_rate": 4e-3},
        schedule={"mode": "synthetic", "cycles": [float(STEPS)]},
        synthesizer=synthesizer,
    )


def run(config: Config, store: TokenStore, out: Path, **kwargs: Any) -> tuple[loop.Outcome, str]:
    console = io.StringIO()
    precision = unchecked_precision("fp32", CPU)
    return loop.train(
        config, store, out, precision=precision, console=console, **kwargs
    ), console.getvalue()


@pytest.mark.usefixtures("long_memory")
def test_a_runaway_is_noticed_and_its_phase_ended(
    tiny_config: MakeConfig, char_store: TokenStore, tmp_path: Path
) -> None:
    """Factor 1, no bound: the model stays at the frequencies of letters, until real gradients."""
    config = provoking(tiny_config, **UNTAMED, learning_rate=1e-2)
    outcome, said = run(config, char_store, tmp_path / "run")
    assert "the synthesizer predicts little but itself" in said
    assert outcome.diagnosis is not None
    assert "it ran away" in outcome.diagnosis
    assert 'synthesizer.factor = "calibrated"' in outcome.diagnosis
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["mode"] == "real"


@pytest.mark.usefixtures("long_memory")
def test_the_defaults_do_not_run_away_where_others_do(
    tiny_config: MakeConfig, char_store: TokenStore, tmp_path: Path
) -> None:
    """A calibrated factor and the bound, in the same place: nothing is ended, and it learns more
    than with an untamed synthesizer, whose loss is stuck while it runs."""
    tamed, said = run(provoking(tiny_config, **TAMED), char_store, tmp_path / "tamed")
    assert "little but itself" not in said
    untamed, _ = run(
        provoking(tiny_config, **UNTAMED, learning_rate=1e-2), char_store, tmp_path / "untamed"
    )
    assert tamed.best_token_ppl is not None
    assert untamed.best_token_ppl is not None
    assert tamed.best_token_ppl < 0.9 * untamed.best_token_ppl


@pytest.mark.usefixtures("long_memory")
def test_an_adjoint_does_not_run_away_where_a_learned_estimator_does(
    tiny_config: MakeConfig, char_store: TokenStore, tmp_path: Path
) -> None:
    """Factor 1 and no bound, in the same place: it learns from nothing that it has predicted."""
    untamed = UNTAMED | {"kind": "adjoint"}
    outcome, said = run(provoking(tiny_config, **untamed), char_store, tmp_path / "run")
    assert "little but itself" not in said
    other, _ = run(
        provoking(tiny_config, **UNTAMED, learning_rate=1e-2), char_store, tmp_path / "other"
    )
    assert outcome.best_token_ppl is not None
    assert other.best_token_ppl is not None
    assert outcome.best_token_ppl < 0.9 * other.best_token_ppl


@pytest.mark.usefixtures("long_memory")
def test_an_ended_phase_stays_ended_when_the_run_is_continued(
    tiny_config: MakeConfig, char_store: TokenStore, tmp_path: Path
) -> None:
    config = provoking(tiny_config, **UNTAMED, learning_rate=1e-2)
    whole, _ = run(config, char_store, tmp_path / "whole")
    with pytest.raises(loop.Stopped):
        run(config, char_store, tmp_path / "parts", stop_signal=stop_at(STEPS - 20))
    parts, _ = run(config, char_store, tmp_path / "parts")
    assert parts.diagnosis == whole.diagnosis
    assert parts.best_token_ppl == whole.best_token_ppl


STATUS = EstimatorStatus(
    factor=1.0,
    is_calibrated=False,
    explained=0.5,
    probes=20,
    capped=None,
    echo=0.0,
    is_finite=True,
)


def test_the_watch_needs_both_an_echo_and_no_progress() -> None:
    def ended(share: float, losses: list[float], mode: Mode = Mode.SYNTHETIC) -> list[bool]:
        watch, status = RunawayWatch(), STATUS._replace(echo=share)
        return [
            watch.update(step, loss, cycle=1, mode=mode, status=status)
            for step, loss in enumerate(losses)
        ]

    assert ended(0.99, [3.0, 3.1, 3.2, 3.1]) == [False, False, False, True]
    assert not any(ended(0.99, [3.0, 2.9, 2.8, 2.7, 2.6]))  # a good synthesizer, and progress
    assert not any(ended(0.5, [3.0, 3.1, 3.2, 3.1, 3.2]))  # a bad patch, but no echo
    assert not any(ended(0.99, [3.0, 3.1, 2.9, 3.1, 3.2]))  # not three in a row
    assert not any(ended(0.99, [3.0, 3.1, 3.2, 3.1, 3.2], Mode.REAL))


def measured(synthesizer: Synthesizer, factor: float | None) -> LearnedEstimator:
    """One that has seen a single observation."""
    estimator = LearnedEstimator(synthesizer, learning_rate=1e-3, factor=factor)
    estimator.trust.observe(torch.ones(2, 4), torch.ones(2, 4))
    return estimator


@pytest.mark.parametrize(
    ("settings", "predicted", "truth", "advice"),
    [
        ({"kind": "mlp"}, 0.0, 1.0, 'kind = "adjoint"'),
        ({"kind": "adjoint"}, 0.0, 1.0, 'schedule.mode = "real"'),
        ({"kind": "mlp", "factor": 0.5}, -1.0, 1.0, "what was injected was noise"),
        ({"kind": "mlp"}, 1.0, 1.0, "sglm compare"),
    ],
)
def test_the_sentence_says_what_was_explained_and_what_to_try(
    tiny_config: MakeConfig,
    settings: dict[str, object],
    predicted: float,
    truth: float,
    advice: str,
) -> None:
    config = tiny_config(synthesizer=settings)
    fixed: Any = settings.get("factor")
    estimator = LearnedEstimator(LinearSynthesizer(4), learning_rate=1e-3, factor=fixed)
    unmeasured = closing_sentence(config, estimator.status(), RunawayWatch(), windows_per_epoch=100)
    assert "never measured" in unmeasured
    estimator.trust.observe(torch.full((2, 4), predicted), torch.full((2, 4), truth))
    sentence = closing_sentence(config, estimator.status(), RunawayWatch(), windows_per_epoch=100)
    assert advice in sentence
    assert f"explained {100.0 if predicted == truth else 0.0:.1f} %" in sentence
    assert "\n" not in sentence


def test_what_was_not_injected_was_no_noise(tiny_config: MakeConfig) -> None:
    estimator = measured(LinearSynthesizer(4), factor=0.5)
    config = tiny_config(
        synthesizer={"kind": "mlp", "factor": 0.5},
        schedule={"mode": "alternating", "start": "real", "cycles": [1.0]},
    )
    sentence = closing_sentence(config, estimator.status(), RunawayWatch(), windows_per_epoch=100)
    assert "factor fixed at 0.5," in sentence
    assert "nothing was injected: no cycle was synthetic" in sentence


def test_a_bound_that_cuts_often_is_said(tiny_config: MakeConfig) -> None:
    estimator = measured(LinearSynthesizer(4), factor=None)
    estimator.injection.capped.fill_(0.6)
    # What no rate makes long: what comes back through the model or random matrices, a derivative.
    for kind in ("mlp", "linear", "adjoint", "critic", "direct"):
        config = tiny_config(synthesizer={"kind": kind})
        sentence = closing_sentence(
            config, estimator.status(), RunawayWatch(), windows_per_epoch=100
        )
        assert "shortened 60 %" in sentence
        assert ("lower synthesizer.learning_rate" in sentence) is (kind in ("mlp", "linear"))


def test_a_diverged_synthesizer_is_said(tiny_config: MakeConfig) -> None:
    net = LinearSynthesizer(4)
    estimator = measured(net, factor=None)
    with torch.no_grad():
        net.heads.bias.fill_(float("nan"))
    sentence = closing_sentence(
        tiny_config(), estimator.status(), RunawayWatch(), windows_per_epoch=100
    )
    assert "diverged" in sentence
    assert "lower synthesizer.learning_rate" in sentence
    assert "explained" not in sentence


def test_real_runs_have_no_diagnosis(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    outcome, _ = run(tiny_config(schedule={"mode": "real"}), word_store, tmp_path / "run")
    assert outcome.diagnosis is None
