"""Whole runs: what they leave behind, and that stopping changes nothing."""

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sglm.config import Config
from sglm.errors import ConfigError, InputError, Stopped
from sglm.loading import load
from sglm.model.folder import load_weights
from sglm.optim.precision import unchecked_precision
from sglm.scoring.evaluate import evaluate_split
from sglm.scoring.predictor import NetworkPredictor
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from sglm.train import loop
from sglm.train.build import stretch_windows
from sglm.train.learner import Learner
from sglm.train.loop import Outcome, train
from sglm.train.step import StepResult, train_step

CPU = torch.device("cpu")
MakeConfig = Callable[..., Config]
DROPOUT: dict[str, object] = {"input": 0.1, "between": 0.1, "output": 0.1, "weight": 0.1}


def run(config: Config, store: TokenStore, out: Path, **kwargs: Any) -> Outcome:
    return train(
        config,
        store,
        out,
        precision=unchecked_precision("fp32", CPU),
        console=io.StringIO(),
        **kwargs,
    )


def stop_at(*polls: int) -> Callable[[], int | None]:
    """SIGTERM at the n-th time the training asks."""
    asked = iter(range(1, 10**9))
    return lambda: signal.SIGTERM if next(asked) in polls else None


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(out / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if tag != "perf/tokens_per_s"
    }


def test_a_run_leaves_what_the_contract_says(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(train={"evaluate_every_steps": 15})
    outcome = run(config, word_store, tmp_path / "run")
    assert outcome.steps == 40
    assert outcome.best_token_ppl is not None
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "config.toml", "model", "metrics.jsonl", "tensorboard", "checkpoints", "snapshots",
    }  # fmt: skip
    assert {path.name for path in (tmp_path / "run" / "snapshots").iterdir()} == {
        "cycle-000", "cycle-001",
    }  # fmt: skip
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [15, 20, 30, 40]  # intervals and cycle ends
    assert [line["mode"] for line in lines] == ["real", "real", "synthetic", "synthetic"]
    assert set(lines[0]) == {
        "step", "tokens_seen", "split", "nll_per_token", "token_ppl", "lr", "mode", "cycle",
        "norms",
    }  # fmt: skip
    assert lines[-1]["tokens_seen"] == 40 * 4 * 5
    assert outcome.best_token_ppl == pytest.approx(min(line["token_ppl"] for line in lines))
    tags = curves(tmp_path / "run")
    assert set(tags) == {
        "train/loss", "train/grad_norm", "train/skipped_steps", "valid/loss", "valid/token_ppl",
        "sched/lr", "sched/mode", "sched/cycle", "sg/cosine", "sg/relative_mse", "sg/norm_ratio",
        "sg/factor", "sg/beta", "sg/parameter_cosine",
        "fit/train_loss", "fit/valid_loss", "fit/valid_ppl", "fit/best_ppl",
        *(f"norm/{what}/{layer}" for what in ("weight", "update", "effective_rate")
          for layer in ("embedding", "layers.0", "layers.1")),
    } | ({"valid/bits_per_byte"} if word_store.counts("valid").unknown == 0 else set())  # fmt: skip
    assert [value for _, value in tags["sched/mode"]] == [0, 0, 1, 1]
    # In so short a run the gauge has measured nothing: that there is a curve is all.
    assert tags["sg/beta"] == [(10, 0.0)]


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_decay_ends_after_its_fraction_of_the_run(
    kind: str,
    tiny_config: MakeConfig,
    word_store: TokenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in a run that stops and goes on after that."""
    config = tiny_config(
        optimizer={"kind": kind, "weight_decay": 0.25, "weight_decay_until": 0.3},
        schedule={"mode": "real"},
    )
    decays = []

    def watched(learner: Learner, *args: Any, **kwargs: Any) -> StepResult:
        decays.append([group["weight_decay"] for group in learner.optimizer.param_groups])
        return train_step(learner, *args, **kwargs)

    monkeypatch.setattr(loop, "train_step", watched)
    with pytest.raises(Stopped):
        run(config, word_store, tmp_path / "run", stop_signal=stop_at(20))
    run(config, word_store, tmp_path / "run")
    assert decays == [[0.25, 0.0]] * 12 + [[0.0, 0.0]] * 28


def test_norms_are_in_the_metrics_as_in_the_curves(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """Means over the logged steps since the validation before."""
    config = tiny_config(
        optimizer={"kind": "adam"},
        schedule={"mode": "real", "cycles": [40.0]},
        train={"evaluate_every_steps": 20, "log_every_steps": 5},
    )
    run(config, word_store, tmp_path / "run")
    tags, lines = curves(tmp_path / "run"), metrics(tmp_path / "run")
    for layer in ("embedding", "layers.0", "layers.1"):
        for what in ("weight", "update", "effective_rate", "l2_share"):
            points = tags[f"norm/{what}/{layer}"]
            assert [step for step, _ in points] == list(range(5, 45, 5))
            for part, line in zip((points[:4], points[4:]), lines, strict=True):
                mean = sum(value for _, value in part) / 4
                # TensorBoard keeps float32.
                assert line["norms"][layer][what] == pytest.approx(mean, rel=1e-6)


def test_what_is_validated_and_saved_is_the_mean_of_the_weights(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """The training goes its way as without."""
    sections: Sections = {
        "schedule": {"mode": "real", "cycles": [20.0, 20.0], "final_rate": 1.0},
        "train": {"evaluate_every_steps": 20},
    }
    run(tiny_config(**sections), word_store, tmp_path / "plain")
    config = tiny_config(**sections, optimizer={"averaging": 0.5})
    outcome = run(config, word_store, tmp_path / "mean")
    state = "checkpoints/latest/state.safetensors"
    plain, mean = (load_file(tmp_path / each / state) for each in ("plain", "mean"))
    for key, tensor in plain.items():
        if key.startswith("/learner/model"):
            assert torch.equal(tensor, mean[key])
    last = load_file(tmp_path / "plain/last/model.safetensors")
    for name in ("model", "last", "snapshots/cycle-001"):
        saved = load_file(tmp_path / "mean" / name / "model.safetensors")
        assert not any(torch.equal(saved[key], last[key]) for key in last)
        network = load_weights(tmp_path / "mean" / name)
        valid = evaluate_split(NetworkPredictor(network), word_store, "valid")
        assert valid.token_ppl == pytest.approx(outcome.best_token_ppl, rel=1e-6)


def test_it_learns(tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path) -> None:
    config = tiny_config(
        model={"hidden": 16},
        schedule={"cycles": [150.0, 150.0]},
        optimizer={"learning_rate": 0.02},
    )
    outcome = run(config, word_store, tmp_path / "run")
    # The language has 4 subjects × 5 objects a line of about 6 tokens: log(20) / 6 nats a token.
    assert outcome.best_token_ppl is not None
    assert outcome.best_token_ppl < 2.0


Sections = dict[str, dict[str, object]]
KINDS: dict[str, Sections] = {
    "mlp": {"synthesizer": {"kind": "mlp", "auxiliary": True}},
    "recurrent": {"synthesizer": {"kind": "recurrent", "auxiliary": True}},
    "linear": {"synthesizer": {"kind": "linear", "auxiliary": True}},
    # Six features are too few for twice the vocabulary: q learns; eight are enough, it is exact.
    "adjoint": {
        "synthesizer": {"kind": "adjoint", "every": 3, "reach": 7},
        "model": {"hidden": 6},
    },
    "adaptive": {
        "synthesizer": {"kind": "adjoint", "every": 3, "reach": 7},
        "model": {"hidden": 6, "softmax": "adaptive", "cutoffs": [4, 9]},
    },
    "adjoint noise": {"synthesizer": {"kind": "adjoint", "inject": "noise"}},
    "noise": {"synthesizer": {"kind": "mlp", "inject": "noise"}},
    "horizon": {"train": {"horizon": 15}, "schedule": {"mode": "real"}},
    "early decay": {"optimizer": {"kind": "adam", "weight_decay": 1e-3, "weight_decay_until": 0.5}},
    "averaging": {"optimizer": {"averaging": 0.2}, "schedule": {"final_rate": 1.0}},
    "random": {"train": {"truncation": "random", "window": 8}, "schedule": {"mode": "real"}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_twice_is_bitwise_the_uninterrupted_run(
    kind: str, tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """Once in the real cycle and once in the synthetic one, both times amid a stretch of three."""
    sections = KINDS[kind]
    config = tiny_config(
        **{
            **sections,
            "dropout": DROPOUT,
            "train": {
                "evaluate_every_steps": 15,
                "checkpoint_every_steps": 10,
                **sections.get("train", {}),
            },
            "synthesizer": {"hidden": 8, "factor": 0.9, **sections.get("synthesizer", {})},
        }
    )
    run(config, word_store, tmp_path / "whole")
    for polls, step in (((14,), 13), ((20,), 28), ((), 40)):
        if polls:
            with pytest.raises(Stopped, match=f"at step {step} of 40") as stopped:
                run(config, word_store, tmp_path / "parts", stop_signal=stop_at(*polls))
            assert stopped.value.exit_code == 143
        else:
            run(config, word_store, tmp_path / "parts")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for name in ("last", "model", "snapshots/cycle-000"):
        left = load_file(whole / name / "model.safetensors")
        right = load_file(parts / name / "model.safetensors")
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert metrics(whole) == metrics(parts)
    assert curves(whole) == curves(parts)


def test_stopped_within_an_evaluation_makes_up_for_it(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(train={"evaluate_every_steps": 15})
    run(config, word_store, tmp_path / "whole")
    # Steps 0 to 14 ask once each, so the 16th question comes from the evaluation at step 15.
    with pytest.raises(Stopped, match="step 15"):
        run(config, word_store, tmp_path / "parts", stop_signal=stop_at(*range(16, 100)))
    assert metrics_or_none(tmp_path / "parts") == []
    run(config, word_store, tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


def metrics_or_none(out: Path) -> list[dict[str, Any]]:
    return metrics(out) if (out / "metrics.jsonl").exists() else []


def test_what_came_after_the_checkpoint_is_dropped_on_resume(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """As after a crash: the evaluation at step 30 is on disk, the checkpoint is an earlier one."""
    config = tiny_config(train={"evaluate_every_steps": 15})
    run(config, word_store, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(config, word_store, tmp_path / "parts", stop_signal=stop_at(28))
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 30, "split": "valid"}\n{"step": 3')
    run(config, word_store, tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")


class Crash(BaseException):
    """The process is gone: nothing is saved."""


def crash_at(poll: int) -> Callable[[], int | None]:
    asked = iter(range(1, 10**9))

    def poll_once() -> int | None:
        if next(asked) == poll:
            raise Crash
        return None

    return poll_once


@pytest.mark.parametrize("polls", [(13,), (27,), (13, 33), (36, 9)])
def test_crashes_leave_no_gap_and_no_double(
    polls: tuple[int, ...], tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """Before the first checkpoint, after it, and twice; metrics and curves are those of one run."""
    config = tiny_config(
        dropout=DROPOUT,
        train={"evaluate_every_steps": 15, "checkpoint_every_steps": 18, "log_every_steps": 5},
        optimizer={"kind": "sgd", "momentum": 0.9, "learning_rate": 0.1},
    )
    run(config, word_store, tmp_path / "whole")
    for poll in polls:
        with pytest.raises(Crash):
            run(config, word_store, tmp_path / "parts", stop_signal=crash_at(poll))
    run(config, word_store, tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert curves(tmp_path / "whole") == curves(tmp_path / "parts")


def test_an_evaluation_made_up_for_is_not_made_again(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(train={"evaluate_every_steps": 15})
    run(config, word_store, tmp_path / "whole")
    with pytest.raises(Stopped, match="step 15"):
        run(config, word_store, tmp_path / "parts", stop_signal=stop_at(*range(16, 100)))
    with pytest.raises(Crash):
        run(config, word_store, tmp_path / "parts", stop_signal=crash_at(12))
    run(config, word_store, tmp_path / "parts")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert curves(tmp_path / "whole") == curves(tmp_path / "parts")


def test_validation_is_that_of_the_saved_model_whatever_the_precision(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """A run in bfloat16 reports what its model scores when it is loaded, which is in float32."""
    precision = unchecked_precision("bf16", CPU)
    train(tiny_config(), word_store, tmp_path / "run", precision=precision, console=io.StringIO())
    found = load(tmp_path / "run" / "last", "cpu").evaluate(word_store, "valid")
    # Sums of float32 likelihoods in chunks of one size: equal but for the last bits.
    assert metrics(tmp_path / "run")[-1]["nll_per_token"] == pytest.approx(
        found.nll_nats / found.tokens, rel=1e-6
    )


def test_a_lost_config_file_is_restored_and_still_binds(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    run(tiny_config(), word_store, tmp_path / "run")
    path = tmp_path / "run" / "config.toml"
    before = path.read_text()
    path.unlink()
    with pytest.raises(ConfigError, match=r"train\.seed: 0 → 9"):
        run(tiny_config(train={"seed": 9}), word_store, tmp_path / "run")
    assert path.read_text() == before


def test_a_finished_run_says_so_and_changes_nothing(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config()
    run(config, word_store, tmp_path / "run")

    def files() -> dict[Path, int]:
        """When each was written; who opens the folder for a moment says so in its lock."""
        paths = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in paths if path.name != ".lock"}

    before = files()
    outcome = run(config, word_store, tmp_path / "run")
    assert outcome.already_finished
    assert files() == before


def test_another_configuration_corpus_or_folder_is_refused(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(tiny_config(), word_store, out)
    with pytest.raises(ConfigError, match=r"model.hidden: 8 → 9"):
        run(tiny_config(model={"hidden": 9}), word_store, out)
    with pytest.raises(InputError, match="already holds a run"):
        run(tiny_config(), word_store, out, resume=False)
    text = tmp_path / "other.txt"
    text.write_text("one two three four five six\n" * 200)
    other = prepare([str(text)], tmp_path / "other", StoreSettings(tokenizer="word"))
    with pytest.raises(InputError, match="another corpus"):
        run(tiny_config(), other, out)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"not a run \(thesis.tex\)"):
        run(tiny_config(), word_store, occupied)
    assert (occupied / "thesis.tex").read_text() == "years of work"


def test_a_run_is_continued_in_its_own_precision(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        run(tiny_config(), word_store, tmp_path / "run", stop_signal=stop_at(5))
    with pytest.raises(ConfigError, match=r"trained in fp32, not bf16; .*--precision fp32"):
        train(
            tiny_config(),
            word_store,
            tmp_path / "run",
            precision=unchecked_precision("bf16", CPU),
            console=io.StringIO(),
        )


def test_without_a_validation_split_the_last_model_is_the_model(
    tiny_config: MakeConfig, text_file: Path, tmp_path: Path
) -> None:
    store = prepare(
        [str(text_file)], tmp_path / "store", StoreSettings(tokenizer="word", valid=0.0, test=0.0)
    )
    outcome = run(tiny_config(), store, tmp_path / "run")
    assert outcome.best_token_ppl is None
    left = load_file(tmp_path / "run" / "model" / "model.safetensors")
    right = load_file(tmp_path / "run" / "last" / "model.safetensors")
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_seed_decides_the_run(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tiny_config(dropout=DROPOUT, train={"seed": seed}), word_store, tmp_path / name)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_numbers_too_small_to_matter_are_zero_while_training_and_only_then(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    """An Intel CPU would compute with them, and be many times slower for it."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush them")
    small, seen = torch.full((3,), 1e-30), set[bool]()

    def look() -> None:
        seen.add(bool((small * 1e-10 == 0).all()))

    run(tiny_config(), word_store, tmp_path / "run", stop_signal=look)
    assert seen == {True}
    assert (small * 1e-10 > 0).all()


def test_an_adjoint_that_would_read_more_than_the_text_is_refused(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(synthesizer={"kind": "adjoint", "every": 10_000})
    with pytest.raises(ConfigError, match=r"synthesizer\.every = 10000 .*; lower them"):
        run(config, word_store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_text_shorter_than_a_stretch_of_long_windows_is_read_once(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(synthesizer={"kind": "adjoint"}, train={"window": 60, "batch": 4})
    lane = len(word_store.ids("train")) // config.train.batch
    assert stretch_windows(config) * config.train.window > lane
    run(config, word_store, tmp_path / "run")
    assert metrics(tmp_path / "run")
