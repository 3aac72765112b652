"""TensorBoard's own page over two runs, one of them killed and resumed, as a browser shows it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from sglm.config import Config
from sglm.text.store import TokenStore
from tests.chromium import find_chromium, page
from tests.train.log.test_curves import EVERY_STEP, Killed, session

FIT = ["fit/best_ppl", "fit/train_loss", "fit/valid_loss", "fit/valid_ppl"]
# Of every card, in the order of the page: its tag, and where its chart begins and ends.
CARDS = """[...document.querySelectorAll("card-view")].map(card => {
    const chart = card.querySelector("line-chart");
    const place = chart && chart.getBoundingClientRect();
    return [card.innerText.split("\\n").slice(0, 2).join(""), place && [place.top, place.bottom]];
})"""


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """The address of a TensorBoard, as installed, over a folder of runs."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                    yield found[0]
                    return
            raise AssertionError("".join(said))
        finally:
            process.terminate()


def ask(address: str, query: str) -> Any:
    with urlopen(f"{address}data/plugin/scalars/{query}", timeout=30) as answer:
        return json.load(answer)


def points(address: str, run: str, tag: str) -> list[tuple[int, float]]:
    query = f"scalars?run={run}%2Ftensorboard&tag={tag.replace('/', '%2F')}"
    return [(step, value) for _, step, value in ask(address, query)]


def visible(cards: list[Any], height: float) -> list[str]:
    """The tags of which the window shows more than half of the chart."""
    return [tag for tag, place in cards if place and 0 <= sum(place) / 2 <= height]


@pytest.mark.skipif(find_chromium() is None, reason="needs Chromium (apt install chromium)")
def test_the_first_screen_shows_the_fit_and_a_resumed_run_goes_on_without_overlap(
    tiny_config: Callable[..., Config], word_store: TokenStore, tmp_path: Path
) -> None:
    train = {**EVERY_STEP, "evaluate_every_steps": 10}
    runs = tmp_path / "runs"
    resumed = tiny_config(train=train)
    with pytest.raises(Killed):
        session(resumed, word_store, runs / "resumed", 30)
    session(resumed, word_store, runs / "resumed", None)
    session(tiny_config(train=train), word_store, runs / "whole", None)
    with tensorboard(runs) as address, page(tmp_path / "profile") as browser:
        browser.open(address)
        charts = f"{CARDS}.filter(([tag, place]) => place).length"
        browser.wait_for(f"{charts} >= {len(FIT)}")
        cards = browser.evaluate(CARDS)
        height = browser.evaluate("window.innerHeight")
        for tag in ("fit/train_loss", "fit/valid_loss", "sg/factor"):
            assert points(address, "resumed", tag) == points(address, "whole", tag)
        assert len(points(address, "resumed", "fit/train_loss")) == 40
        described = ask(address, "tags")["resumed/tensorboard"]
    assert [tag for tag, _ in cards[: len(FIT)]] == FIT
    assert visible(cards, height) == FIT
    assert "nats per token" in described["fit/train_loss"]["description"]
