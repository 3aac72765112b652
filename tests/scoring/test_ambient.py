"""Scores depend on text and model alone, not on how the caller's program has set up torch."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import sglm
from tests.tiny_models import LINES, save_lm


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AMBIENT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
    "default device meta": lambda: default_device("meta"),
    "inside device meta": lambda: torch.device("meta"),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
}


def everything(folder: Path) -> tuple[list[Any], sglm.LanguageModel]:
    """What a model says, by every way there is; the model, loaded here too."""
    lm = sglm.load(folder, "cpu")
    texts = [*LINES, *(f"{line} and more" for line in LINES)] * 5  # enough to share beginnings
    text = "\n".join(texts)
    one, state = lm.extend(lm.start(), "the cat")
    two, _ = lm.extend(state, " sat")
    said: list[Any] = [score.token_logprobs for score in lm.score(texts)]
    said += [lm.score(LINES[0], eos=True).logprob, one.logprob, two.logprob]
    said += [score.words() for score in lm.score(LINES, distribution=True, context="a ")]
    said += [score.words(correction="bow") for score in lm.score_running(LINES)]
    said += [lm.perplexity(text, context=how).nll_nats for how in ("carried", "reset")]  # type: ignore[arg-type]
    said += [lm.generate("the", seed=1), lm.generate("the", seed=1, top_p=0.5)]
    return said, lm


@pytest.mark.parametrize("name", AMBIENT)
def test_what_the_caller_has_set_changes_no_bit(tmp_path: Path, name: str) -> None:
    folder = save_lm("sentencepiece", tmp_path / "model")
    expected, _ = everything(folder)
    with AMBIENT[name]():
        found, lm = everything(folder)
        autocast = torch.is_autocast_enabled("cpu")
    assert found == expected
    # What the caller has set is as it was, and the model could be trained.
    assert autocast == ("autocast" in name)
    lm.model.logits(torch.zeros(1, lm.model.shape.widths[-1])).sum().backward()
    assert lm.model.embedding.grad is not None
