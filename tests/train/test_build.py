"""What the configuration asks for: every kind of synthesizer keeps the promises of all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sglm.config import Config
from sglm.dni.critic import CriticEstimator
from sglm.optim.precision import unchecked_precision
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.build import (
    build_batcher,
    build_decision_rule,
    build_learner,
    lookahead_steps,
    stretch_windows,
)
from sglm.train.learner import Learner, capture, restore
from sglm.train.step import train_step
from sglm.train.window_decision import DecisionRule
from tests.train.test_no_waiting import Waits
from tests.train.test_step import SYNTHETIC, all_equal, weights

KINDS = ["feedback", "direct", "critic"]
FEW, WORDS = 12, 40  # less and more than twice the features: then q predicts
MakeConfig = Callable[..., Config]


def configured(make: MakeConfig, kind: str, **settings: Any) -> Config:
    return make(
        synthesizer={"kind": kind, "probe_every": 4, **settings},
        dropout={"output": 0.2, "weight": 0.2},
        train={"window": 3},
    )


def build(config: Config, precision: str = "fp32", words: int = WORDS) -> Learner:
    counts_V = np.ones(words, dtype=np.int64)
    return build_learner(config, counts_V, unchecked_precision(precision, torch.device("cpu")))


def run(learner: Learner, config: Config, steps: range) -> None:
    words = learner.model.shape.vocab_size
    ids_N = np.random.default_rng(0).integers(words, size=400).astype(np.uint16)
    train, rule = config.train, build_decision_rule(config)
    batcher = Batcher(
        ids_N,
        batch=train.batch,
        window=train.window,
        bos_id=0,
        stretch=stretch_windows(config),
        lookahead=lookahead_steps(config),
    )
    rule = DecisionRule(probe_every=rule.probe_every, stretch=rule.stretch)  # no gauge
    for step in steps:
        window = batcher.at(step)
        decision = rule.decide(step, SYNTHETIC, window)
        train_step(learner, window, decision, learning_rate=1e-2)


def everything(learner: Learner) -> list[Tensor]:
    return [each for each in tree_leaves(capture(learner)) if isinstance(each, Tensor)]


@pytest.mark.parametrize("inject", ["prediction", "noise"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_bitwise_from_a_learner_that_is_built_anew(
    kind: str, inject: str, tiny_config: MakeConfig
) -> None:
    """What is random and fixed is drawn again, alike."""
    every = {} if kind == "critic" else {"every": 3}
    config = configured(tiny_config, kind, factor=0.5, inject=inject, **every)
    whole = build(config)
    run(whole, config, range(10))
    first, second = build(config), build(config)
    run(first, config, range(5))  # in the midst of a stretch
    tree = capture(first)
    generator = torch.random.get_rng_state()
    restore(second, tree)
    torch.random.set_rng_state(generator)
    run(second, config, range(5, 10))
    assert all_equal(everything(whole), everything(second))
    nothing = configured(tiny_config, kind, factor=0.0, **every)
    plain = build(nothing)
    run(plain, nothing, range(10))
    assert not all_equal(weights(whole.model), weights(plain.model))


def test_a_restored_learner_forgets_its_own_past(tiny_config: MakeConfig) -> None:
    config = tiny_config(train={"window": 3, "horizon": 9}, schedule={"mode": "real"})
    new, used = build(config), build(config)
    run(used, config, range(4))
    tree = capture(new)  # before the first window, so without a past
    restore(used, tree)
    assert not used.past
    assert all_equal(everything(used), everything(new))


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_injects_nothing_is_plain_truncation_bitwise(
    kind: str, tiny_config: MakeConfig
) -> None:
    after = []
    for mode in ("synthetic", "real"):
        config = configured(tiny_config, kind, factor=0.0)
        section = config.schedule.model_copy(update={"mode": mode})
        config = config.model_copy(update={"schedule": section})
        learner = build(config)
        run(learner, config, range(6))
        after.append(weights(learner.model))
    assert all_equal(*after)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_run_and_other_matrices(kind: str, tiny_config: MakeConfig) -> None:
    injected = []
    for seed in (0, 1):
        config = configured(tiny_config, kind, factor=1.0, trust_bound=False)
        section = config.train.model_copy(update={"seed": seed})
        # So few words that the residual is the true one, of which no seed decides.
        learner = build(config.model_copy(update={"train": section}), words=FEW)
        learner.model.load_state_dict(build(config, words=FEW).model.state_dict())
        torch.manual_seed(0)
        run(learner, config, range(4))
        injected.append(learner.estimator.estimate(learner.state))
    # A critic's hidden layer, too, is drawn from the seed.
    assert not torch.equal(*injected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_a_number_and_a_graph_is_no_matter_on_a_cpu(
    kind: str, precision: str, tiny_config: MakeConfig
) -> None:
    config = configured(tiny_config, kind)
    section = config.train.model_copy(update={"cuda_graph": True})
    config = config.model_copy(update={"train": section})
    learner = build(config, precision)
    with Waits() as waits:
        run(learner, config, range(6))
    assert waits.asked == []
    assert all(bool(each.isfinite().all()) for each in weights(learner.model))


def test_a_critic_tells_values_and_takes_the_window_into_its_discount(
    tiny_config: MakeConfig,
) -> None:
    discounts = []
    for window in (3, 6):
        config = configured(tiny_config, "critic")
        section = config.train.model_copy(update={"window": window})
        learner = build(config.model_copy(update={"train": section}))
        assert isinstance(learner.estimator, CriticEstimator)
        run(learner, config, range(3))
        packed_BS = learner.state.packed()
        assert learner.estimator.values(packed_BS).shape == (len(packed_BS),)
        discounts.append(learner.estimator.critic.discount)
    assert discounts[1] == pytest.approx(discounts[0] ** 2)
    assert 0.8 < discounts[0] < 0.9  # (1 − 1/20)³


def test_a_given_every_is_checked_as_the_same_default_is(
    tiny_config: Callable[..., Config], word_store: TokenStore
) -> None:
    """Where windows are long, one reading is of `reach` tokens, however seldom it comes."""
    for every in (None, 32):
        config = tiny_config(train={"batch": 8, "window": 20}, synthesizer={"every": every})
        assert stretch_windows(config) == 32
        assert build_batcher(config, word_store).lane_length < 32 * 20
