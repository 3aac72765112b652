"""Evaluation: a split, and the same text as it comes; carried, or each text on its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.scoring.evaluate import evaluate_pieces, evaluate_split, half_of
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.results import Context, Evaluation
from sglm.text.sources import Piece
from sglm.text.user_text import pieces_of
from tests.tiny_models import KINDS, LINES, make_network, make_store, make_tokenizer, plain_nlls

# Float32 products cut differently round differently; the sums are float64.
RELATIVE = 1e-6


def assert_same(first: Evaluation, second: Evaluation) -> None:
    """All but names and time; sums to rounding."""
    assert first.nll_nats == pytest.approx(second.nll_nats, rel=RELATIVE)
    for name in ("tokens", "words", "bytes", "unknown", "context"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("kind", KINDS)
class TestSplitsAndPieces:
    def test_a_store_and_its_text_give_the_same(self, kind: str, tmp_path: Path) -> None:
        text = "\n".join([*LINES, "CRLF\r", "", "no newline at the end"])
        (tmp_path / "test.txt").write_bytes(text.encode())
        store = make_store(tmp_path, kind, tmp_path / "test.txt")
        tokenizer = store.tokenizer()
        predictor = NetworkPredictor(make_network(tokenizer.vocab_size))
        from_store = evaluate_split(predictor, store, "test")
        with (tmp_path / "test.txt").open(encoding="utf-8") as file:
            for source in (tmp_path / "test.txt", file, text, text.splitlines(keepends=True)):
                assert_same(from_store, evaluate_pieces(predictor, tokenizer, pieces_of(source)[0]))
        expected = sum(plain_nlls(predictor.model, [tokenizer.eos_id, *store.ids("test").tolist()]))
        assert from_store.nll_nats == pytest.approx(expected, rel=RELATIVE)
        assert from_store.tokens == len(store.ids("test"))
        assert from_store.bytes == len(text.encode())
        assert from_store.words == len(text.split())

    def test_documents_on_their_own(self, kind: str, tmp_path: Path) -> None:
        texts = [f"{first}\n{second}" for first in LINES[:4] for second in LINES if second]
        file = tmp_path / "test.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        store = make_store(tmp_path, kind, file)
        tokenizer = store.tokenizer()
        predictor = NetworkPredictor(make_network(tokenizer.vocab_size))
        from_store = evaluate_split(predictor, store, "test", context="reset")
        from_file = evaluate_pieces(predictor, tokenizer, pieces_of(file)[0], context="reset")
        assert_same(from_store, from_file)
        # At word level the unit is the line, else the document.
        units = [line for text in texts for line in text.split("\n")] if kind == "word" else texts
        alone = [evaluate_pieces(predictor, tokenizer, [Piece(unit, True)]) for unit in units]
        assert from_store.nll_nats == pytest.approx(
            sum(each.nll_nats for each in alone), rel=RELATIVE
        )
        carried = evaluate_split(predictor, store, "test")
        assert_same(carried, evaluate_pieces(predictor, tokenizer, pieces_of(file)[0]))
        assert abs(carried.nll_nats - from_store.nll_nats) > 1e-3, "the context should matter"

    def test_lines_on_their_own(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        predictor = NetworkPredictor(make_network(tokenizer.vocab_size))
        pieces = [Piece(line + "\n", False) for line in LINES]
        evaluation = evaluate_pieces(predictor, tokenizer, pieces, context="reset")
        alone = sum(evaluate_pieces(predictor, tokenizer, [piece]).nll_nats for piece in pieces)
        assert evaluation.nll_nats == pytest.approx(alone, rel=RELATIVE)

    def test_a_line_cut_for_its_length_is_one_text(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        predictor = NetworkPredictor(make_network(tokenizer.vocab_size))
        whole = [Piece("the cat sat on the mat\n", False)] * 2
        cut = [Piece("the cat", False, True), Piece(" sat on the mat\n", False)] * 2
        for context in ("carried", "reset"):
            assert_same(
                evaluate_pieces(predictor, tokenizer, cut, context=context),
                evaluate_pieces(predictor, tokenizer, whole, context=context),
            )

    def test_no_text_is_an_error(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        predictor = NetworkPredictor(make_network(tokenizer.vocab_size))
        for context in ("carried", "reset"):
            with pytest.raises(InputError, match=r"empty\.txt: no text"):
                evaluate_pieces(predictor, tokenizer, [], context=context, split="empty.txt")


def test_running_text_in_a_store_has_no_lines_to_reset_at(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\ntwo\n")
    store = make_store(tmp_path, "byte", tmp_path / "test.txt")
    with pytest.raises(InputError, match="--text FILE --context reset"):
        evaluate_split(NetworkPredictor(make_network(257)), store, "test", context="reset")


@pytest.mark.parametrize(
    ("ids", "cut"),
    [
        ([1, 2, 0, 3, 0, 4], 3),  # a text ends right in the middle
        ([1, 2, 3, 4, 0, 5], 5),  # the first one that ends after it
        ([1, 0, 2, 3, 4, 0], 3),  # only the last one does, so the second half would be empty
        ([1, 2, 3, 4, 5], 2),
    ],
)
def test_halves_are_cut_where_a_text_ends(ids: list[int], cut: int) -> None:
    first, second = (
        half_of(np.array(ids), half, eos_id=0, bos_id=0).tolist()
        for half in ("first", "second")  # type: ignore[arg-type]
    )
    assert (first, second) == (ids[:cut], ids[cut:])


def test_a_half_with_unknown_characters_does_not_know_its_bytes(tmp_path: Path) -> None:
    """What is written for them may be longer or shorter than what they were."""
    (tmp_path / "test.txt").write_text("\n".join(LINES), encoding="utf-8")  # the last has some
    store = make_store(tmp_path, "char", tmp_path / "test.txt")
    predictor = NetworkPredictor(make_network(store.tokenizer().vocab_size))
    first, second = (evaluate_split(predictor, store, "test", half=h) for h in ("first", "second"))  # type: ignore[arg-type]
    assert (first.unknown, second.unknown > 0) == (0, True)
    assert first.bytes > 0
    assert second.bytes == 0
    assert second.to_json()["bytes"] is None


@pytest.mark.parametrize("context", ["carried", "reset"])
def test_shares_add_up_to_the_whole(context: Context, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    store = make_store(tmp_path, "word", tmp_path / "test.txt")
    predictor = NetworkPredictor(make_network(store.tokenizer().vocab_size))
    whole = evaluate_split(predictor, store, "test", context=context)
    shares = [
        evaluate_split(predictor, store, "test", context=context, shard=(n, 2)) for n in range(2)
    ]
    assert sum(each.nll_nats for each in shares) == pytest.approx(whole.nll_nats, rel=RELATIVE)
    assert {each.tokens for each in shares} == {whole.tokens}
