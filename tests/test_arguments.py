"""Arguments of the wrong kind in Python: taken for what they are, or refused by name."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sglm
from sglm.errors import InputError
from tests.tiny_models import LINES, make_lm, make_store, save_lm

LM: Any = make_lm("sentencepiece")


@pytest.mark.parametrize("context", ["Carried", "carry", None, 1, ["carried"]])
def test_a_context_is_one_of_two(context: Any, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n".join(LINES), encoding="utf-8")
    store = make_store(tmp_path, "sentencepiece", tmp_path / "test.txt")
    for evaluate in (
        lambda: LM.perplexity("the cat\n", context=context),
        lambda: LM.evaluate(store, "test", context),
    ):
        with pytest.raises(InputError, match="context must be carried or reset"):
            evaluate()


def test_a_store_may_be_given_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n".join(LINES), encoding="utf-8")
    lm: Any = make_lm("byte")
    store = make_store(tmp_path, "byte", tmp_path / "test.txt")
    expected = lm.evaluate(store, "test").nll_nats
    assert lm.evaluate(store.folder, "test").nll_nats == expected
    assert lm.evaluate(str(store.folder), "test").nll_nats == expected
    for wrong in (None, 3, LM, ""):
        with pytest.raises(InputError, match="token store"):
            lm.evaluate(wrong, "test")
    for split in ("tset", None, ["test"]):
        with pytest.raises(InputError, match="has no split"):
            lm.evaluate(store, split)


@pytest.mark.parametrize(
    "numbers",
    [
        {"tokens": np.int64(4), "seed": np.int64(3), "temperature": np.float32(0.5)},
        {"tokens": np.uint8(4), "seed": torch.tensor(3), "temperature": torch.tensor(0.5)},
        {"tokens": 4, "seed": np.array(3), "temperature": np.float64(0.5), "top_p": np.float16(1)},
        {"tokens": 4, "seed": 3, "temperature": 0.5, "top_p": 1},
    ],
)
def test_numbers_of_numpy_and_torch_are_numbers(numbers: dict[str, Any]) -> None:
    assert LM.generate("the", **numbers) == LM.generate("the", tokens=4, seed=3, temperature=0.5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", [1.5, 3.0, "3", True, np.True_, [3], np.array([1, 2]), -1, 2**64]),
        ("tokens", [1.5, "3", True, None, np.float64(3)]),
        ("temperature", ["1", True, None, np.True_, np.str_("1"), [1.0], np.array([1.0]), 1j]),
        ("top_p", ["1", True, np.array([0.5, 0.6]), float("nan")]),
    ],
)
def test_what_is_no_number_is_refused(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=name.replace("top_p", "top-p")):
            LM.generate("the", **{name: value})


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_truth_is_one(name: str) -> None:
    expected = LM.score("the cat", **{name: False}).logprob
    assert LM.score("the cat", **{name: np.False_}).logprob == expected
    for value in ("no", 2, None, [True]):
        with pytest.raises(InputError, match=f"{name} must be True or False"):
            LM.score("the cat", **{name: value})


def test_texts_come_in_any_order_that_there_is() -> None:
    expected = [score.logprob for score in LM.score(["the cat", "a dog"])]
    for texts in (
        ("the cat", "a dog"),
        (text for text in ("the cat", "a dog")),
        np.array(["the cat", "a dog"]),
        {"text": ["the cat", "a dog"]}["text"],
    ):
        assert [score.logprob for score in LM.score(texts)] == expected


@pytest.mark.parametrize(
    "wrong",
    [
        b"the",
        3,
        None,
        Path("the"),
        {"a": "the"},
        {"the"},
        ["the", None],
        ["the", b"cat"],
        [["the"]],
    ],
    ids=repr,
)
def test_what_is_no_text_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError):
        LM.score(wrong)


def test_an_open_file_is_a_text_and_not_many() -> None:
    with pytest.raises(InputError, match="perplexity"):
        LM.score(io.StringIO("the cat\n"))


def test_prompts_and_pieces_are_text_and_states_are_states() -> None:
    state = LM.start()
    for wrong in (b"the", None, 3, ["the"]):
        with pytest.raises(InputError, match="must be a str"):
            LM.generate(wrong)
        with pytest.raises(InputError, match="must be a str"):
            LM.extend(state, wrong)
    for wrong_state in ("the", None, LM.extend(state, "the")):
        with pytest.raises(InputError, match="the state first"):
            LM.extend(wrong_state, "cat")
        with pytest.raises(InputError, match="a state comes from start"):
            LM.next(wrong_state)


def test_what_a_model_is_loaded_from_and_onto(tmp_path: Path, monkeypatch: Any) -> None:
    folder = save_lm("byte", tmp_path)  # what an empty name would be taken for
    monkeypatch.chdir(tmp_path)
    load: Any = sglm.load
    for device in ("cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
        for path in (folder, str(folder), "."):
            assert load(path, device).predictor.device.type == "cpu"
    for path in ("", None, 3, LM):
        with pytest.raises(InputError, match="a run or a model"):
            load(path)
    for device in ("gpu", "", None, 0, torch.device("meta"), "cuda:x", "auto:1"):
        with pytest.raises(InputError, match="unknown device"):
            load(folder, device)


def test_what_was_found_is_shown_in_a_line() -> None:
    score = LM.score("the cat " * 3000)
    evaluation = LM.perplexity("the cat\n" * 30)
    for shown, number in ((score, score.ppl), (evaluation, evaluation.token_ppl)):
        assert len(repr(shown)) < 250
        assert repr(shown) == str(shown)
        assert f"ppl={number:.2f}" in repr(shown)
    assert f"bits_per_byte={score.bits_per_byte:.4f}" in repr(score)
    assert "bits_per_byte=None" in repr(make_lm("word").perplexity("zyx\n"))
    assert len(repr(LM.start())) < 200
