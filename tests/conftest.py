"""Shared by all tests: small deterministic texts, stores and learners; no network, no GPU."""

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sglm.config import Config, parse_config
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore


@pytest.fixture(autouse=True, scope="session")
def _interrupts_are_heard() -> None:
    """A suite that a shell started in the background (`nohup … &`) inherits an ignored SIGINT,
    which the programs that it starts and interrupts would inherit from it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small products are faster, and sums reproducible, on one thread."""
    torch.set_num_threads(1)


def make_text(lines: int, seed: int = 0) -> str:
    """Lines of a tiny language with something to learn: subject, verb, object agree."""
    rng = random.Random(seed)
    subjects = {"the cat": "sees", "the dogs": "see", "a bird": "hears", "all fish": "hear"}
    objects = ["the moon", "the rain", "a song", "nothing", "the old house"]
    made = []
    for _ in range(lines):
        subject = rng.choice(sorted(subjects))
        made.append(f"{subject} {subjects[subject]} {rng.choice(objects)} .")
    return "\n".join(made) + "\n"


@pytest.fixture(scope="session")
def word_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A word-level store of a few thousand tokens with all three splits."""
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.txt"
    text.write_text(make_text(800), encoding="utf-8")
    return prepare([str(text)], folder / "store", StoreSettings(tokenizer="word"))


@pytest.fixture
def tiny_config() -> Callable[..., Config]:
    """A configuration that trains in a second; keyword arguments change sections."""

    def make(**sections: dict[str, object]) -> Config:
        values: dict[str, dict[str, object]] = {
            "model": {"layers": 2, "hidden": 8},
            "train": {"batch": 4, "window": 5, "log_every_steps": 10},
            "schedule": {"unit": "steps", "cycles": [20.0, 20.0]},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return parse_config(values, "test")

    return make


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """A text file of 200 lines."""
    path = tmp_path / "text.txt"
    path.write_text(make_text(200), encoding="utf-8")
    return path
