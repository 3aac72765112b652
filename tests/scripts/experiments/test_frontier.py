"""scripts/experiments/frontier: shares of a gap, times beside each other, and one command."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from scripts.experiments import frontier, frontier_picture
from sglm.errors import InputError
from sglm.text.store import TokenStore


def arguments(store: TokenStore, out: Path, **changed: object) -> Namespace:
    small = ["schedule.cycles=[4.0,4.0]", "model.hidden=8", "train.batch=4"]
    given = {
        "data": store.folder, "out": out, "seeds": "0,1", "set": small, "threads": 1, "title": "",
        "points": "bptt;bptt-long 20;adjoint 2 × 10", "ceiling": "bptt-long 20",
        "only_train": False,
    }  # fmt: skip
    return Namespace(**{**given, **changed})


def test_shares_are_paired_by_seed_and_those_of_the_ends_are_nothing_and_all() -> None:
    perplexities = {"bptt": {0: 10.0, 1: 12.0}, "x": {0: 9.0, 1: 11.5}, "top": {0: 8.0, 1: 10.0}}
    shares = frontier.shares(perplexities, "top")
    assert shares == {"bptt": [0.0, 0.0], "x": [0.5, 0.25], "top": [1.0, 1.0]}


def test_one_command_trains_times_and_draws(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for name, value in (("WARM_STEPS", 2), ("BLOCK", 1), ("ROUNDS", 3)):
        monkeypatch.setattr(frontier, name, value)
    result = frontier.run(arguments(word_store, tmp_path))
    assert result["times"]["bptt"]["ratio"] == 1
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    # Runs that are there are not made again.
    again = frontier.run(arguments(word_store, tmp_path, only_train=True))
    assert again["perplexities"] == result["perplexities"]
    assert again["times"] == result["times"]  # nor are times forgotten
    assert json.loads((tmp_path / "frontier.json").read_text())["title"] == word_store.folder.name
    assert "adjoint 2 × 10" in frontier.table(again)
    # The documentation's file has no shares: they are computed.
    kept = {key: value for key, value in again.items() if key != "shares"}
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    drawn = frontier_picture.read(tmp_path / "kept.json")
    assert drawn["shares"]["bptt-long 20"] == pytest.approx(again["shares"]["bptt-long 20"])


@pytest.mark.parametrize("points", ["bptt;bptt-lnog 20", "bptt;adjoint 2 × 10"])
def test_what_it_cannot_draw_is_refused(
    points: str, word_store: TokenStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        frontier.run(arguments(word_store, tmp_path, points=points))
