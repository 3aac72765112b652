"""Evaluation: every token once, whatever the chunks and batches; measures with their units."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sglm.scoring.stream
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.batch import sequence_nlls, texts_nll
from sglm.scoring.evaluate import (
    Evaluation,
    evaluate_pieces,
    evaluate_split,
    evaluate_stream,
    pieces_of,
)
from sglm.scoring.stream import read_on
from sglm.text.prepare import Recipe, prepare
from sglm.text.sources import Piece
from sglm.text.store import TokenStore
from tests.tiny_models import KINDS, LINES, make_network, make_tokenizer

VOCABULARY, EOS = 23, 5
# Float32 products cut differently round differently; the sums are float64.
RELATIVE = 1e-6


def plain_nlls(model: LSTMLanguageModel, ids: list[int]) -> list[float]:
    """The definition, step by step in float64 with the gates written out: the first id is only
    read, each later one is scored from the state before it."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    output_VH = weights.get("softmax_weight", weights["embedding"])
    layers = range(len(model.layers))
    hidden = [torch.zeros(width, dtype=torch.float64) for width in model.shape.widths]
    cell = [torch.zeros(width, dtype=torch.float64) for width in model.shape.widths]
    nlls = []
    for current, following in pairwise(ids):
        below = weights["embedding"][current]
        for n in layers:
            gates = (
                weights[f"layers.{n}.weight_ih"] @ below
                + weights[f"layers.{n}.weight_hh"] @ hidden[n]
                + weights[f"layers.{n}.bias"]
            )
            enter, forget, new, leave = gates.chunk(4)
            cell[n] = forget.sigmoid() * cell[n] + enter.sigmoid() * new.tanh()
            hidden[n] = leave.sigmoid() * cell[n].tanh()
            below = hidden[n]
        log_probabilities_V = (output_VH @ below + weights["softmax_bias"]).log_softmax(0)
        nlls.append(-log_probabilities_V[following].item())
    return nlls


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest) -> LSTMLanguageModel:
    return make_network(VOCABULARY, tied=request.param)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, 1100).astype(np.uint16)


class TestStream:
    def test_every_token_counts_once_from_the_state_after_eos(
        self, model: LSTMLanguageModel, ids: np.ndarray
    ) -> None:
        expected = sum(plain_nlls(model, [EOS, *ids.tolist()]))
        assert evaluate_stream(model, ids, EOS) == pytest.approx(expected, rel=RELATIVE)

    @pytest.mark.parametrize("chunk_steps", [1, 7, 255, 256, 257, 1100, 5000])
    def test_the_chunk_does_not_matter(
        self, model: LSTMLanguageModel, ids: np.ndarray, chunk_steps: int
    ) -> None:
        whole = evaluate_stream(model, ids, EOS, chunk_steps=100_000)
        found = evaluate_stream(model, ids, EOS, chunk_steps=chunk_steps)
        assert found == pytest.approx(whole, rel=RELATIVE)

    @pytest.mark.parametrize("entries", [1, 30, 1000])
    def test_the_memory_for_logits_does_not_matter(
        self,
        model: LSTMLanguageModel,
        ids: np.ndarray,
        entries: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        whole = evaluate_stream(model, ids[:200], EOS)
        monkeypatch.setattr(sglm.scoring.stream, "LOGIT_ENTRIES", entries)
        assert evaluate_stream(model, ids[:200], EOS) == pytest.approx(whole, rel=RELATIVE)

    @given(st.lists(st.integers(0, 400), max_size=8))
    @settings(max_examples=20, deadline=None)
    def test_pieces_are_one_stream(self, cuts: list[int]) -> None:
        model = make_network(VOCABULARY)
        ids = np.random.default_rng(1).integers(0, VOCABULARY, 400)
        edges = [0, *sorted(cuts), 400]
        pieces = [ids[a:b].tolist() for a, b in pairwise(edges)]
        found = evaluate_stream(model, pieces, EOS, chunk_steps=64)
        assert found == pytest.approx(evaluate_stream(model, ids, EOS), rel=RELATIVE)

    def test_logits_are_never_there_for_more_than_a_few_steps(
        self, ids: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = make_network(VOCABULARY)
        sizes = []
        logits = model.logits
        monkeypatch.setattr(
            model, "logits", lambda features: sizes.append(len(features)) or logits(features)
        )
        monkeypatch.setattr(sglm.scoring.stream, "LOGIT_ENTRIES", 10 * VOCABULARY)
        evaluate_stream(model, ids, EOS)
        assert max(sizes) == 10
        assert sum(sizes) == len(ids)

    def test_nothing_to_evaluate_is_no_loss(self, model: LSTMLanguageModel) -> None:
        assert evaluate_stream(model, np.empty(0, np.uint16), EOS) == 0

    def test_stops_when_asked_to(self, model: LSTMLanguageModel, ids: np.ndarray) -> None:
        answers = iter([False, False, True])
        model.train()
        found = evaluate_stream(model, ids, EOS, chunk_steps=100, should_stop=lambda: next(answers))
        assert found is None
        assert next(answers, "none left") == "none left"
        assert model.training, "the mode must be restored also when stopped"
        model.eval()

    def test_leaves_no_trace(self, ids: np.ndarray) -> None:
        from sglm.model.language_model import DropoutRates

        model = make_network(VOCABULARY)
        expected = evaluate_stream(model, ids, EOS)
        model.dropout = DropoutRates(input=0.5, between=0.5, output=0.5, embedding=0.5, weight=0.5)
        model.train()
        before = torch.get_rng_state()
        assert evaluate_stream(model, ids, EOS) == expected, "dropout must be off"
        assert model.training
        assert torch.equal(torch.get_rng_state(), before)
        assert all(parameter.grad is None for parameter in model.parameters())


class TestSequences:
    def test_each_starts_anew(self, model: LSTMLanguageModel) -> None:
        rng = np.random.default_rng(2)
        # Longer and shorter than a chunk, equal lengths, single tokens, none at all.
        sequences = [rng.integers(0, VOCABULARY, n) for n in (3, 600, 1, 0, 3, 257, 256, 2, 40)]
        found = sequence_nlls(model, sequences)
        for ids, nlls in zip(sequences, found, strict=True):
            # 1e-5: single float32 numbers here, not sums.
            np.testing.assert_allclose(nlls, plain_nlls(model, ids.tolist()), rtol=1e-5)

    @given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 60))
    @settings(max_examples=25, deadline=None)
    def test_neighbours_and_batches_do_not_matter(
        self, lengths: list[int], batch_tokens: int
    ) -> None:
        model = make_network(VOCABULARY)
        rng = np.random.default_rng(3)
        sequences = [rng.integers(0, VOCABULARY, n) for n in lengths]
        together = sequence_nlls(model, sequences, batch_tokens=batch_tokens)
        for ids, nlls in zip(sequences, together, strict=True):
            np.testing.assert_allclose(nlls, sequence_nlls(model, [ids])[0], rtol=1e-5)

    @pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
    def test_the_sum_over_texts_is_that_of_each_alone(
        self, model: LSTMLanguageModel, batch_tokens: int
    ) -> None:
        rng = np.random.default_rng(4)
        texts = [rng.integers(0, VOCABULARY, n).tolist() for n in rng.integers(0, 20, 100)]
        expected = sum(evaluate_stream(model, [text], EOS) for text in texts)
        found = texts_nll(model, iter(texts), EOS, batch_tokens=batch_tokens)
        assert found == pytest.approx(expected, rel=RELATIVE)

    def test_reading_on_is_reading_whole(self, model: LSTMLanguageModel, ids: np.ndarray) -> None:
        whole, _ = read_on(model, ids.astype(np.int64), model.start_state(1))
        first, state = read_on(model, ids[:301].astype(np.int64), model.start_state(1))
        second, _ = read_on(model, ids[300:].astype(np.int64), state)
        np.testing.assert_allclose([*first, *second], whole, rtol=1e-5)


def make_store(folder: Path, kind: str, held_out: Path) -> TokenStore:
    """A store whose test split is the file `held_out`, made the way users make it."""
    train = folder / "train.txt"
    train.write_text(("\n".join(LINES[:-1]) + "\n") * 20, encoding="utf-8")
    recipe = Recipe(tokenizer=kind, valid=0.1, test=str(held_out))
    return prepare([str(train)], folder / "store", recipe)


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
        network = make_network(tokenizer.vocab_size)
        from_store = evaluate_split(network, store, "test")
        with (tmp_path / "test.txt").open(encoding="utf-8") as file:
            for source in (tmp_path / "test.txt", file, text, text.splitlines(keepends=True)):
                assert_same(from_store, evaluate_pieces(network, tokenizer, pieces_of(source)[0]))
        expected = sum(plain_nlls(network, [tokenizer.eos_id, *store.ids("test").tolist()]))
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
        network = make_network(tokenizer.vocab_size)
        from_store = evaluate_split(network, store, "test", context="reset")
        from_file = evaluate_pieces(network, tokenizer, pieces_of(file)[0], context="reset")
        assert_same(from_store, from_file)
        # At word level the unit is the line, else the document.
        units = [line for text in texts for line in text.split("\n")] if kind == "word" else texts
        alone = [evaluate_pieces(network, tokenizer, [Piece(unit, True)]) for unit in units]
        assert from_store.nll_nats == pytest.approx(
            sum(found.nll_nats for found in alone), rel=RELATIVE
        )
        carried = evaluate_split(network, store, "test")
        assert_same(carried, evaluate_pieces(network, tokenizer, pieces_of(file)[0]))
        assert abs(carried.nll_nats - from_store.nll_nats) > 1e-3, "the context should matter"

    def test_lines_on_their_own(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        network = make_network(tokenizer.vocab_size)
        pieces = [Piece(line + "\n", False) for line in LINES]
        found = evaluate_pieces(network, tokenizer, pieces, context="reset")
        alone = sum(evaluate_pieces(network, tokenizer, [piece]).nll_nats for piece in pieces)
        assert found.nll_nats == pytest.approx(alone, rel=RELATIVE)

    def test_a_line_cut_for_its_length_is_one_text(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        network = make_network(tokenizer.vocab_size)
        whole = [Piece("the cat sat on the mat\n", False)] * 2
        cut = [Piece("the cat", False, True), Piece(" sat on the mat\n", False)] * 2
        for context in ("carried", "reset"):
            assert_same(
                evaluate_pieces(network, tokenizer, cut, context=context),
                evaluate_pieces(network, tokenizer, whole, context=context),
            )

    def test_no_text_is_an_error(self, kind: str) -> None:
        tokenizer = make_tokenizer(kind)
        network = make_network(tokenizer.vocab_size)
        for context in ("carried", "reset"):
            with pytest.raises(InputError, match=r"empty\.txt: no text"):
                evaluate_pieces(network, tokenizer, [], context=context, split="empty.txt")


def test_running_text_in_a_store_has_no_lines_to_reset_at(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one\ntwo\n")
    store = make_store(tmp_path, "byte", tmp_path / "test.txt")
    with pytest.raises(InputError, match="--text FILE --context reset"):
        evaluate_split(make_network(257), store, "test", context="reset")


class TestWhatIsHandedOver:
    TEXT = "one\r\ntwo\n\nthree — ünd\x85four"  # CRLF, blank, a line separator that is none of ours

    def texts(self, source: object) -> list[str]:
        return [piece.text for piece in pieces_of(source)[0]]  # type: ignore[arg-type]

    def test_every_way_gives_the_same_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "text.md"
        path.write_bytes(self.TEXT.encode())
        lines = ["one\r\n", "two\n", "\n", "three — ünd\x85four"]
        assert self.texts(path) == lines
        assert self.texts(self.TEXT) == lines
        assert self.texts(lines) == lines
        with path.open(encoding="utf-8") as file:
            assert self.texts(file) == lines
        with path.open("rb") as file:
            assert self.texts(file) == lines

    def test_half_a_file_is_the_rest_of_it(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_text("one\ntwo\n")
        with path.open() as file:
            file.readline()
            assert self.texts(file) == ["two\n"]

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_bytes(b"\xef\xbb\xbfone\n")
        with path.open(encoding="utf-8") as file:
            assert self.texts(file) == self.texts(path) == ["one\n"]

    def test_records_are_documents(self, tmp_path: Path) -> None:
        path = tmp_path / "text.jsonl"
        path.write_text('{"text": "a\\nb"}\n')
        assert list(pieces_of(path)[0]) == [Piece("a\nb", True)]

    def test_a_file_name_is_not_a_text(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_text("one\n")
        with pytest.raises(InputError, match=r"Path\("):
            pieces_of(str(path))

    def test_what_is_no_text_is_named(self) -> None:
        for source in (b"bytes", ["one\n", 2]):
            with pytest.raises(InputError, match="is no text but int"):
                self.texts(source)

    def test_other_encodings_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "text.txt"
        path.write_bytes(b"fine\n\xff\xfe\n")
        with pytest.raises(InputError, match="not UTF-8"), path.open(encoding="utf-8") as file:
            self.texts(file)
        with pytest.raises(InputError, match="line 2 or later"), path.open("rb") as file:
            self.texts(file)


class TestMeasures:
    def test_units(self) -> None:
        found = Evaluation(nll_nats=6.0, tokens=3, words=2, bytes=12, unknown=0)
        assert found.token_ppl == pytest.approx(math.exp(2))
        assert found.word_ppl == pytest.approx(math.exp(3))
        assert found.bits_per_byte == pytest.approx(6 / (12 * math.log(2)))

    def test_unknown_words_hide_bytes(self) -> None:
        assert Evaluation(6.0, 3, 2, 12, unknown=1).bits_per_byte is None

    def test_the_keys_of_the_contract(self) -> None:
        found = Evaluation(6.0, 3, 2, 12, 0, "reset", "runs/tiny", "test", 1.23456, 40, 3)
        assert found.to_json() == {
            "model": "runs/tiny",
            "split": "test",
            "tokens": 3,
            "words": 2,
            "bytes": 12,
            "nll_nats": 6.0,
            "token_ppl": found.token_ppl,
            "word_ppl": found.word_ppl,
            "bits_per_byte": found.bits_per_byte,
            "context": "reset",
            "adapt": "none",
            "seconds": 1.235,
            "lines": 40,
            "lines_in_training": 3,
        }

    @pytest.mark.parametrize("nll_nats", [1e9, math.inf, math.nan])
    def test_no_number_breaks_the_json(self, nll_nats: float) -> None:
        found = Evaluation(nll_nats, tokens=3, words=0, bytes=0, unknown=0)
        assert not math.isfinite(found.token_ppl)
        shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert shown["token_ppl"] is shown["word_ppl"] is shown["bits_per_byte"] is None
