"""Losses and gradients that are not finite: skipped, counted, gone back from, given up on."""

import io
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sglm.config import Config
from sglm.errors import SglmError, Stopped
from sglm.model.language_model import LSTMLanguageModel
from sglm.optim.precision import unchecked_precision
from sglm.storage.checkpoint import load_checkpoint
from sglm.text.store import TokenStore
from sglm.train import loop, progress
from sglm.train.loop import Outcome, train
from sglm.train.progress import Diverged, Progress

CPU = torch.device("cpu")
MakeConfig = Callable[..., Config]
IN_A_ROW = 8


@pytest.fixture
def config(tiny_config: MakeConfig) -> Config:
    return tiny_config(
        train={"checkpoint_every_steps": 5, "evaluate_every_steps": 15, "log_every_steps": 2},
        dropout={"output": 0.1},
    )


@pytest.fixture(autouse=True)
def few_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SKIPS_BEFORE_GOING_BACK", IN_A_ROW)


def run(
    config: Config,
    store: TokenStore,
    out: Path,
    console: io.StringIO,
    stops: Callable[[], bool] = lambda: False,
) -> Outcome:
    return train(
        config,
        store,
        out,
        precision=unchecked_precision("fp32", CPU),
        console=console,
        stop_signal=lambda: signal.SIGTERM if stops() else None,
    )


def break_losses(
    monkeypatch: pytest.MonkeyPatch, of_steps: Callable[[int], bool], value: float
) -> list[int]:
    """The n-th loss of a training window, counted from 0, is multiplied by `value` where asked.

    Returns a list that holds how many there have been.
    """
    plain, calls = LSTMLanguageModel.nll, [0]

    def nll(self: LSTMLanguageModel, *args: Any, **named: Any) -> Tensor:
        found = plain(self, *args, **named)
        calls[0] += 1
        return found * value if of_steps(calls[0] - 1) else found

    monkeypatch.setattr(LSTMLanguageModel, "nll", nll)
    return calls


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "last" / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    left, right = weights(one), weights(other)
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_few_are_skipped_and_counted(
    config: Config,
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    break_losses(monkeypatch, lambda step: step in (3, 17, 18, 30), value)
    console = io.StringIO()
    outcome = run(config, word_store, tmp_path / "run", console)
    assert outcome.steps == 40
    assert outcome.skipped_steps == 4
    assert "going back" not in console.getvalue()
    assert all(bool(weight.isfinite().all()) for weight in weights(tmp_path / "run").values())


def test_a_loss_without_its_gradient_is_skipped_too(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where one logit overflows: the gradient of the softmax is finite."""
    plain, calls = LSTMLanguageModel.nll, [0]

    def nll(self: LSTMLanguageModel, *args: Any, **named: Any) -> Tensor:
        calls[0] += 1
        return plain(self, *args, **named) + (math.inf if calls[0] == 9 else 0.0)

    monkeypatch.setattr(LSTMLanguageModel, "nll", nll)
    assert run(config, word_store, tmp_path / "run", io.StringIO()).skipped_steps == 1


def test_after_a_fault_that_passes_the_run_is_the_one_without_it(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine erred for a while: back to the last good checkpoint, and on, bitwise."""
    run(config, word_store, tmp_path / "whole", io.StringIO())
    break_losses(monkeypatch, lambda number: 22 <= number < 22 + IN_A_ROW, math.nan)
    console = io.StringIO()
    outcome = run(config, word_store, tmp_path / "run", console)
    assert "going back" in console.getvalue()
    assert "continuing at step 20 of 40" in console.getvalue()
    assert outcome.skipped_steps == 0  # of those that count
    assert same(tmp_path / "whole", tmp_path / "run")


def test_before_the_first_checkpoint_it_goes_back_to_the_start(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, word_store, tmp_path / "whole", io.StringIO())
    break_losses(monkeypatch, lambda number: 1 <= number < 1 + IN_A_ROW, math.nan)
    outcome = run(config, word_store, tmp_path / "run", io.StringIO())
    assert outcome.steps == 40
    assert same(tmp_path / "whole", tmp_path / "run")


def test_what_comes_again_ends_the_run_and_leaves_its_last_good_checkpoint(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, lambda number: number >= 22, math.nan)
    console = io.StringIO()
    with pytest.raises(SglmError, match=r"again after going back to step 20.*learning_rate"):
        run(config, word_store, tmp_path / "run", console)
    assert console.getvalue().count("going back") == 1
    found = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.step == 20
    assert found.state["progress"]["skipped_in_row"] == 0


def test_a_stop_amidst_skipped_steps_waits_for_one_that_counts(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is one to go back to, however often the run is stopped."""
    calls = break_losses(monkeypatch, lambda number: 21 <= number < 25, math.nan)
    with pytest.raises(Stopped, match="at step 26 of 40"):
        run(config, word_store, tmp_path / "run", io.StringIO(), stops=lambda: calls[0] >= 23)
    found = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.state["progress"]["skipped_in_row"] == 0
    assert found.state["progress"]["skipped"] == 4


def test_a_stop_in_a_validation_after_a_skipped_step_loses_no_validation(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = break_losses(monkeypatch, lambda number: number == 19, math.nan)
    with pytest.raises(Stopped, match="at step 21 of 40"):
        run(config, word_store, tmp_path / "run", io.StringIO(), stops=lambda: calls[0] >= 20)
    assert '"step": 20,' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert (tmp_path / "run" / "snapshots" / "cycle-000").exists()


def test_weights_that_are_not_finite_are_never_saved(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever made them so, without any step's being skipped: back to the last checkpoint."""
    run(config, word_store, tmp_path / "whole", io.StringIO())
    plain, calls = loop.train_step, [0]

    def step_that_errs(learner: Any, *args: Any, **named: Any) -> Any:
        result = plain(learner, *args, **named)
        calls[0] += 1
        if calls[0] == 10:
            learner.model.embedding.data[0, 0] = math.inf
        return result

    monkeypatch.setattr(loop, "train_step", step_that_errs)
    console = io.StringIO()
    run(config, word_store, tmp_path / "run", console)
    assert "continuing at step 5" in console.getvalue()
    assert same(tmp_path / "whole", tmp_path / "run")


def test_skipped_steps_leave_the_reported_loss_alone(
    config: Config, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_losses(monkeypatch, lambda number: number == 3, math.nan)
    console = io.StringIO()
    run(config, word_store, tmp_path / "run", console)
    assert "loss nan" not in console.getvalue()


def test_steps_in_a_row_are_counted_however_many_are_asked_for_at_a_time() -> None:
    progress = Progress()
    progress.count_skips([False] * (IN_A_ROW - 1) + [True] + [False] * 4)
    progress.count_skips([False] * (IN_A_ROW - 5))
    with pytest.raises(Diverged):
        progress.count_skips([False])
    assert progress.skipped == 2 * IN_A_ROW - 1
