"""scripts/experiments/wrapping: the forms of a text, and the chain rule over its line breaks."""

import math
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from scripts.experiments import wrapping
from scripts.experiments.wrapping import FOLDED_AT, folded, joined, parts_of, run, table
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import stream_nll
from sglm.text.prepare import StoreSettings, prepare

BOOK = "\n\n".join(
    "\n".join(f"the cat number {n} sat on the mat and saw {m}" for m in range(4)) for n in range(60)
)


def test_joined_has_a_line_for_a_paragraph() -> None:
    assert joined("one\ntwo\n\nthree\n") == "one two\n\nthree\n"


def test_folded_has_the_words_of_the_text_in_short_lines() -> None:
    text = folded(BOOK)
    assert max(map(len, text.split("\n"))) <= FOLDED_AT
    assert text.split() == BOOK.split()
    assert joined(text) == joined(BOOK)


def test_the_parts_add_up_to_the_loss(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(BOOK)
    store = prepare(
        [str(tmp_path / "book.txt")], tmp_path / "data", StoreSettings(tokenizer="char")
    )
    torch.manual_seed(0)
    vocab_size = store.tokenizer().vocab_size
    shape = ModelShape(vocab_size=vocab_size, layers=1, hidden=8, embedding=8, tied=True)
    predictor, ids_N = NetworkPredictor(LSTMLanguageModel(shape)), store.ids("valid")
    parts = parts_of(predictor, store)
    whole = stream_nll(predictor, ids_N, store.tokenizer().eos_id) / len(ids_N)
    # float32 probabilities
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
    # Of an untrained model: all tokens alike, of which one is a break.
    assert parts.break_or_not < math.log(2)
    assert parts.break_or_not > 0


def test_one_command_makes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one form of the text and the smallest variants: every run is a process."""
    monkeypatch.setattr(wrapping, "FORMS", {"folded": folded})
    monkeypatch.setattr(wrapping, "VARIANTS", ("bptt", "bptt-long"))
    book = tmp_path / "book.txt"
    book.write_text(BOOK)
    arguments = Namespace(
        text=book, out=tmp_path / "out", seeds="0", vocab_size=300, horizon=10,
        set=["schedule.cycles=[4.0,4.0]", "model.hidden=8", "train.batch=4"],
    )  # fmt: skip
    results = run(arguments)
    *_, first, last = table(results).splitlines()
    assert first.startswith("| folded | bptt |")
    assert last.startswith("| folded | bptt-long |")
    assert " 100 % " in last
    assert table(run(arguments)) == table(results)  # nothing is run again
