"""What `--dry-run` says is what the run would do."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sglm.config import Config
from sglm.errors import ConfigError
from sglm.model.cutoffs import chosen_cutoffs
from sglm.model.language_model import ModelShape
from sglm.optim.precision import unchecked_precision
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.build import build_learner, build_schedule, model_shape, token_counts
from sglm.train.dry_run.memory import MemoryPlan
from sglm.train.dry_run.plan import RunPlan, _describe_layers, draw_schedule, plan_run

CPU = torch.device("cpu")


def test_parameters_are_counted_as_built(tiny_config: Callable[..., Config]) -> None:
    for model in (
        {"layers": 1, "hidden": 8},
        {"layers": 3, "hidden": 8, "embedding": 5},
        {"layers": 2, "hidden": 8, "embedding": 5, "tied": False},
        {"layers": 2, "hidden": 8, "embedding": 5, "softmax": "adaptive", "cutoffs": [3, 9]},
    ):
        config = tiny_config(model=model)
        learner = build_learner(
            config, np.ones(17, dtype=np.int64), unchecked_precision("fp32", CPU)
        )
        built = sum(parameter.numel() for parameter in learner.model.parameters())
        assert model_shape(config, 17).parameters == built


def test_cutoffs_are_chosen_from_the_counts_and_said(
    tiny_config: Callable[..., Config], word_store: TokenStore
) -> None:
    config = tiny_config(model={"softmax": "adaptive"})
    plan = plan_run(config, word_store, unchecked_precision("fp32", CPU))
    counts_V = token_counts(word_store)
    first, second = plan.shape.cutoffs
    assert (first, second) == chosen_cutoffs(counts_V)
    assert f"(softmax cut off at {first} and {second})" in " ".join(plan.describe().split())
    built = build_learner(config, counts_V, unchecked_precision("fp32", CPU)).model
    assert built.shape == plan.shape
    too_large = tiny_config(model={"softmax": "adaptive", "cutoffs": [4, 999]})
    with pytest.raises(ConfigError, match=r"\[4, 999\] must be below .*, \d+; lower them"):
        plan_run(too_large, word_store, unchecked_precision("fp32", CPU))


def test_plan_names_cycles_modes_rates_and_memory(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(
        schedule={"unit": "epochs", "cycles": [1.0, 2.0], "warmup_steps": 3, "final_rate": 0.1},
        optimizer={"learning_rate": 0.01},
    )
    batcher = Batcher(np.zeros(4 * 5 * 10, dtype=np.uint16), batch=4, window=5, bos_id=0)
    mib = 2**20
    plan = RunPlan(
        config=config,
        shape=model_shape(config, 17),
        batcher=batcher,
        schedule=build_schedule(config, batcher.steps_per_epoch),
        memory=MemoryPlan(
            base=300 * mib,
            lasting=20 * mib,
            situations={"forward": mib, "saving": 5 * mib},
            holes=2 * mib,
        ),
    )
    text = plan.describe()
    assert max(map(len, text.splitlines())) <= 80
    rows = [line.split() for line in text.splitlines() if line[:5].strip().isdigit()]
    # Rates are 0.01·(0.1 + 0.9·½(1 + cos πi/N)); in cycle 0 a third of it first, the peak at i = 2.
    assert rows[0] == ["0", "real", "10", "1.00", "0.00333", "0.00914", "0.00122"]
    assert rows[1] == ["1", "synthetic", "20", "2.00", "0.01", "0.01", "0.00106"]
    assert "30 steps, 600 tokens, 3.00 epochs" in text
    memory = "about 327 MiB: 300 for the libraries, 20 lasting, 5 for saving, 2 lost to"
    assert memory in " ".join(text.split())
    as_json = plan.as_json()
    assert as_json["memory_bytes"] == 327 * mib
    assert as_json["memory"]["worst"] == "saving"


def test_chart_shows_the_restart_and_the_flip(tiny_config: Callable[..., Config]) -> None:
    schedule = build_schedule(tiny_config(schedule={"final_rate": 0.0}), 1)
    rates, modes = draw_schedule(schedule)
    chart, marks = rates.split(maxsplit=1)[1], modes.split()[1]
    assert chart[0] == chart[20] == "█"
    assert chart[19] in " ▁"
    assert marks == "r" * 20 + "s" * 20


@pytest.mark.parametrize(
    ("layers", "embedding", "tied", "words"),
    [
        (1, 8, True, "1 layer × 8"),
        (1, 8, False, "1 layer × 16"),
        (3, 16, True, "3 layers × 16"),
        (3, 8, True, "2 layers × 16 and one × 8"),
        (2, 8, True, "1 layer × 16 and one × 8"),
    ],
)
def test_layers_are_told_with_their_own_widths(
    layers: int, embedding: int, tied: bool, words: str
) -> None:
    shape = ModelShape(vocab_size=9, layers=layers, hidden=16, embedding=embedding, tied=tied)
    assert _describe_layers(shape) == words


def test_random_windows_are_counted_with_their_own_lengths(
    tiny_config: Callable[..., Config], word_store: TokenStore
) -> None:
    config = tiny_config(
        train={"truncation": "random"},
        schedule={"mode": "real", "unit": "epochs", "cycles": [1.0]},
    )
    plan = plan_run(config, word_store, unchecked_precision("fp32", torch.device("cpu")))
    tokens = config.train.batch * sum(plan.batcher.lengths)
    assert tokens != config.train.batch * config.train.window * plan.schedule.total_steps
    assert f" {tokens:,} tokens" in " ".join(plan.describe().split())
