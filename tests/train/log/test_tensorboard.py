"""What TensorBoard is given: the first curves, their descriptions, hyper-parameters, samples."""

import io
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from sglm.config import Config
from sglm.optim.precision import unchecked_precision
from sglm.text.store import TokenStore
from sglm.train import loop
from sglm.train.log.tags import description
from sglm.train.loop import train
from sglm.train.sample import START_TOKENS, sample
from tests.tiny_models import make_network
from tests.train.test_loop import DROPOUT, metrics

MakeConfig = Callable[..., Config]


def run(config: Config, store: TokenStore, out: Path, precision: str = "fp32") -> EventAccumulator:
    kind = unchecked_precision(precision, torch.device("cpu"))
    train(config, store, out, precision=kind, console=io.StringIO())
    accumulator = EventAccumulator(str(out / "tensorboard"))
    accumulator.Reload()
    return accumulator


def curve(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in accumulator.Scalars(tag)]


def samples(accumulator: EventAccumulator) -> dict[int, str]:
    points = accumulator.Tensors("sample/continuation")
    return {point.step: point.tensor_proto.string_val[0].decode() for point in points}


def test_the_first_curves_are_those_of_the_fit(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    config = tiny_config(train={"evaluate_every_steps": 4}, optimizer={"learning_rate": 0.5})
    events = run(config, word_store, tmp_path)
    tags = events.Tags()["scalars"]
    assert sorted(tags)[:4] == ["fit/best_ppl", "fit/train_loss", "fit/valid_loss", "fit/valid_ppl"]
    for first, same in (
        ("fit/train_loss", "train/loss"),
        ("fit/valid_loss", "valid/loss"),
        ("fit/valid_ppl", "valid/token_ppl"),
    ):
        assert curve(events, first) == curve(events, same)
    perplexities = [value for _, value in curve(events, "fit/valid_ppl")]
    lowest = list(accumulate(perplexities, min))
    assert lowest != perplexities  # at such a rate it gets worse now and then
    assert [value for _, value in curve(events, "fit/best_ppl")] == pytest.approx(lowest)


def test_every_curve_has_a_description_that_names_what_it_is(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    events = run(tiny_config(), word_store, tmp_path)
    tags = [*events.Tags()["scalars"], "sample/continuation"]
    found = {tag: events.SummaryMetadata(tag).summary_description for tag in tags}
    assert found == {tag: description(tag) for tag in tags}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_scale_is_shown_where_there_is_one(
    precision: str, tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    events = run(tiny_config(), word_store, tmp_path, precision)
    assert ("amp/scale" in events.Tags()["scalars"]) == (precision == "fp16")


def hyper_parameters(events: EventAccumulator) -> dict[str, Any]:
    content = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    values = parse_session_start_info_plugin_data(content).hparams
    return {name: value.string_value or value.number_value for name, value in values.items()}


def test_hyper_parameters_are_the_few_that_tell_runs_apart(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path
) -> None:
    noise = tiny_config(synthesizer={"kind": "mlp", "inject": "noise"}, train={"seed": 3})
    assert hyper_parameters(run(noise, word_store, tmp_path / "noise")) == {
        "mode": "alternating",
        "synthesizer": "mlp, noise",
        "learning rate": 4e-3,
        "seed": "3",
    }
    plain = tiny_config(schedule={"mode": "real"})
    found = hyper_parameters(run(plain, word_store, tmp_path / "plain"))
    assert (found["mode"], found["synthesizer"]) == ("real", "none")


def test_samples_change_no_later_bit_of_the_training(
    tiny_config: MakeConfig, word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(dropout=DROPOUT, train={"evaluate_every_steps": 7})
    assert list(samples(run(config, word_store, tmp_path / "with"))) == [7, 14, 20, 21, 28, 35, 40]
    monkeypatch.setattr(loop, "sample", lambda *_: None)
    assert "sample/continuation" not in run(config, word_store, tmp_path / "none").Tags()["tensors"]
    for name in ("last/model", "checkpoints/latest/state"):
        left, right = (
            load_file(tmp_path / each / f"{name}.safetensors") for each in ("with", "none")
        )
        assert all(torch.equal(left[key], right[key]) for key in left)
    assert metrics(tmp_path / "with") == metrics(tmp_path / "none")


def test_a_sample_continues_the_validation_text_the_same_way_every_time(
    word_store: TokenStore,
) -> None:
    model = make_network(word_store.tokenizer().vocab_size).train()
    torch.manual_seed(1)
    first = sample(model, word_store)
    torch.manual_seed(2)
    assert sample(model, word_store) == first
    assert model.training
    assert first is not None
    ids = word_store.ids("valid")[:START_TOKENS].tolist()
    assert first.start == word_store.tokenizer().decode(ids)
    assert len(first.continuation.split()) > 10


def test_a_model_that_predicts_no_numbers_writes_nothing(word_store: TokenStore) -> None:
    model = make_network(word_store.tokenizer().vocab_size)
    with torch.no_grad():
        model.embedding.fill_(torch.nan)
    assert sample(model, word_store) is None
