"""What a run says of its synthesizer at the end, and a runaway: provoked, noticed, ended."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm.config import Config
from sglm.dni.boundary import Boundary
from sglm.dni.synthesizer import LinearSynthesizer
from sglm.optim.precision import precision_of
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.prepare import Recipe, prepare
from sglm.text.store import TokenStore
from sglm.train import loop
from sglm.train.diagnosis import Watch, diagnosis
from sglm.train.step import Learner
from tests.conftest import make_text
from tests.train.test_loop import MakeConfig, stop_at

CPU = torch.device("cpu")
STEPS = 700
SYNTHETIC, REAL = StepPlan(1.0, Mode.SYNTHETIC, 1), StepPlan(1.0, Mode.REAL, 1)
UNTAMED = {"kind": "mlp", "factor": 1.0, "trust_bound": False, "probe_every": 10_000}
TAMED = {"kind": "mlp", "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def char_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("chars")
    (folder / "text.txt").write_text(make_text(800), encoding="utf-8")
    return prepare([str(folder / "text.txt")], folder / "store", Recipe(tokenizer="char"))


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that forget nearly nothing from step to step: a state gradient passes back through
    a window undiminished, so that a bootstrapped error is not damped."""
    build_learner = loop.build_learner

    def build(*arguments: Any) -> Learner:
        learner = build_learner(*arguments)
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
    precision = precision_of("fp32", CPU)
    return loop.train(config, store, out, CPU, precision, console, **kwargs), console.getvalue()


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


def echoing(share: float) -> Boundary:
    boundary = Boundary(LinearSynthesizer(4), 1e-3, factor=1.0)
    boundary.echo.fill_(share)
    return boundary


def test_watch_needs_both_an_echo_and_no_progress() -> None:
    def ended(share: float, losses: list[float], plan: StepPlan = SYNTHETIC) -> list[bool]:
        watch = Watch()
        return [
            watch.interval(step, loss, plan, echoing(share)) for step, loss in enumerate(losses)
        ]

    assert ended(0.99, [3.0, 3.1, 3.2, 3.1]) == [False, False, False, True]
    assert not any(ended(0.99, [3.0, 2.9, 2.8, 2.7, 2.6]))  # a good synthesizer, and progress
    assert not any(ended(0.5, [3.0, 3.1, 3.2, 3.1, 3.2]))  # a bad patch, but no echo
    assert not any(ended(0.99, [3.0, 3.1, 2.9, 3.1, 3.2]))  # not three in a row
    assert not any(ended(0.99, [3.0, 3.1, 3.2, 3.1, 3.2], REAL))


def test_only_the_cycle_that_ran_away_is_ended() -> None:
    watch = Watch(ended_cycle=1)
    assert watch.plan(SYNTHETIC).mode is Mode.REAL
    later = StepPlan(1.0, Mode.SYNTHETIC, 3)
    assert watch.plan(later) == later


@pytest.mark.parametrize(
    ("settings", "says", "truth", "advice"),
    [
        ({"kind": "mlp"}, 0.0, 1.0, 'kind = "lookahead"'),
        ({"kind": "lookahead"}, 0.0, 1.0, 'schedule.mode = "real"'),
        ({"kind": "mlp", "factor": 0.5}, -1.0, 1.0, "what was injected was noise"),
        ({"kind": "mlp"}, 1.0, 1.0, "sglm compare"),
    ],
)
def test_the_sentence_says_what_was_explained_and_what_to_try(
    tiny_config: MakeConfig, settings: dict[str, object], says: float, truth: float, advice: str
) -> None:
    config = tiny_config(synthesizer=settings)
    fixed = settings.get("factor")
    boundary = Boundary(LinearSynthesizer(4), 1e-3, factor=fixed)  # type: ignore[arg-type]
    assert "never measured" in diagnosis(config, boundary, Watch())
    boundary.trust.observe(torch.full((2, 4), says), torch.full((2, 4), truth))
    sentence = diagnosis(config, boundary, Watch())
    assert advice in sentence
    assert f"explained {100.0 if says == truth else 0.0:.1f} %" in sentence
    assert "\n" not in sentence


def test_a_bound_that_cuts_often_is_said(tiny_config: MakeConfig) -> None:
    boundary = Boundary(LinearSynthesizer(4), 1e-3, factor=None)
    boundary.trust.observe(torch.ones(2, 4), torch.ones(2, 4))
    boundary.capped.fill_(0.6)
    sentence = diagnosis(tiny_config(), boundary, Watch())
    assert "cut 60 %" in sentence
    assert "lower synthesizer.learning_rate" in sentence


def test_a_diverged_synthesizer_is_said(tiny_config: MakeConfig) -> None:
    net = LinearSynthesizer(4)
    boundary = Boundary(net, 1e-3, factor=None)
    boundary.trust.observe(torch.ones(2, 4), torch.ones(2, 4))
    with torch.no_grad():
        net.heads.bias.fill_(float("nan"))
    sentence = diagnosis(tiny_config(), boundary, Watch())
    assert "diverged" in sentence
    assert "lower synthesizer.learning_rate" in sentence
    assert "explained" not in sentence


def test_real_runs_have_no_diagnosis(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    outcome, _ = run(tiny_config(schedule={"mode": "real"}), word_store, tmp_path / "run")
    assert outcome.diagnosis is None
