"""The scoring benchmark at a size that takes a moment: its numbers, and what its floor holds."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks import scoring


def test_json_is_one_object_with_both_measurements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring, "SIZES", {"least": scoring.Size(1, 8, 30)})
    arguments = ["--quick", "--json", "--lines", "40", "--words", "3", "--long", "300"]
    monkeypatch.setattr(sys, "argv", ["scoring", *arguments])
    scoring.main()
    found = json.loads(capsys.readouterr().out)["least"]
    assert found["short_lines"]["tokens"] == 120
    assert found["short_lines"]["distinct_prefixes"] < 120
    assert found["short_lines"]["times_faster"] > 0
    assert found["long_text"]["score_tokens_per_s"] > 0


@pytest.mark.parametrize("recurrent_rows", [None, 1])
def test_the_floor_does_all_the_products(recurrent_rows: int | None) -> None:
    size = scoring.Size(layers=2, hidden=8, vocab_size=30)
    rows = 300
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        scoring.products(size, rows, recurrent_rows)()
    per_row = 2 * (size.layers * 2 * 4 * size.hidden**2 + size.hidden * size.vocab_size)
    assert counter.get_total_flops() == rows * per_row
