"""The scoring benchmark at a size that takes a moment: its numbers, and what its floor holds."""

import json
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from scripts.benchmarks import scoring


def test_json_is_one_object_with_all_measurements(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring, "SIZES", {"least": scoring.Size(1, 8, 30)})
    monkeypatch.setattr(scoring, "DOCUMENTS", scoring.Size(1, 8, 30))
    arguments = ["--quick", "--json", "--lines", "40", "--words", "3", "--long", "300"]
    arguments += ["--documents", "3000"]
    monkeypatch.setattr(sys, "argv", ["scoring", *arguments])
    scoring.main()
    results = json.loads(capsys.readouterr().out)
    documents, found = results["documents"]["documents"], results["least"]
    assert 3000 <= documents["tokens"] < 5000
    assert documents["file_share_of_floor"] > 0
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


def test_documents_are_of_all_lengths() -> None:
    lengths = scoring.document_lengths(300_000)
    assert min(lengths) >= scoring.SHORTEST
    assert max(lengths) <= scoring.LONGEST
    middle = (scoring.SHORTEST * scoring.LONGEST) ** 0.5
    assert sum(length < middle for length in lengths) / len(lengths) == pytest.approx(0.5, abs=0.1)
