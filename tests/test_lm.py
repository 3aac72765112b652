"""The Python interface: scores that add up, do not leak and do not depend on company."""

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sglm
from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.scoring.mixture import Mixture
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.results import Score
from sglm.scoring.stream import CHUNK_STEPS
from sglm.text.store import TokenStore
from tests.tiny_models import (
    KINDS,
    LINES,
    make_lm,
    make_network,
    make_store,
    make_tokenizer,
    plain_logprobs,
    plain_nlls,
    save_lm,
)

# Single float32 log-probabilities; how texts are batched changes the order of their products.
RELATIVE = 1e-5

TEXTS = st.text(
    st.sampled_from(list("the cat\n ,é日🙂\u2581\r\t<unk>eos")) | st.characters(codec="utf-8"),
    max_size=40,
)


@pytest.fixture(params=KINDS)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return make_lm(request.param)


def assert_same(first: Score, second: Score) -> None:
    """Equal up to rounding."""
    assert first.tokens == second.tokens
    assert first.unk == second.unk
    np.testing.assert_allclose(first.token_logprobs, second.token_logprobs, rtol=RELATIVE)
    assert first.logprob == pytest.approx(second.logprob, rel=RELATIVE)
    assert (first.n_tokens, first.n_words) == (second.n_tokens, second.n_words)
    assert first.n_bytes == second.n_bytes
    assert first.ppl == pytest.approx(second.ppl, rel=RELATIVE, nan_ok=True)
    if second.bits_per_byte is None:
        assert first.bits_per_byte is None
    else:
        assert first.bits_per_byte == pytest.approx(second.bits_per_byte, rel=RELATIVE)


class TestScore:
    @pytest.mark.parametrize("text", LINES)
    def test_is_the_definition(self, lm: LanguageModel, text: str) -> None:
        ids = lm.tokenizer.encode(text)
        expected = [-nll for nll in plain_nlls(lm.model, [lm.tokenizer.eos_id, *ids])]
        found = lm.score(text)
        np.testing.assert_allclose(found.token_logprobs, expected, rtol=RELATIVE)
        assert found.tokens == [lm.tokenizer.token(i) for i in ids]
        assert found.unk == [i == lm.tokenizer.unk_id for i in ids]
        assert found.n_tokens == len(ids)
        assert found.n_words == len(text.split())
        assert found.n_bytes == len(text.encode())
        assert found.logprob == pytest.approx(sum(expected), rel=RELATIVE)
        if ids:
            assert found.ppl == pytest.approx(math.exp(-found.logprob / len(ids)))
        if any(found.unk) or not text:
            assert found.bits_per_byte is None
        else:
            assert found.bits_per_byte == -found.logprob / (found.n_bytes * math.log(2))

    def test_the_empty_text_has_no_tokens(self, lm: LanguageModel) -> None:
        found = lm.score("")
        assert (found.tokens, found.token_logprobs, found.unk) == ([], [], [])
        assert (found.logprob, found.n_tokens, found.n_words, found.n_bytes) == (0, 0, 0, 0)
        assert math.isnan(found.ppl)
        assert found.bits_per_byte is None
        assert lm.score([]) == []

    @pytest.mark.parametrize("text", ["the cat sat", "the", ""])
    def test_bos_and_eos_are_one_token_each(self, lm: LanguageModel, text: str) -> None:
        ids, eos = lm.tokenizer.encode(text), lm.tokenizer.eos_id
        for bos in (True, False):
            for with_eos in (True, False):
                read = [eos] * bos + ids + [eos] * with_eos
                found = lm.score(text, bos=bos, eos=with_eos)
                expected = [-nll for nll in plain_nlls(lm.model, read)]
                np.testing.assert_allclose(found.token_logprobs, expected, rtol=RELATIVE)
                assert found.n_tokens == len(found.tokens) == max(len(read) - 1, 0)
                assert found.n_bytes == len(text)
        if text:
            with_end, without = lm.score(text, eos=True), lm.score(text)
            added = with_end.token_logprobs[-1]
            assert with_end.logprob == pytest.approx(without.logprob + added, rel=RELATIVE)
            assert with_end.tokens == [*without.tokens, "<eos>"]

    def test_an_unknown_first_token_hides_bytes_scored_or_not(self) -> None:
        lm = make_lm("word")
        for bos in (True, False):
            assert lm.score("zyx cat sat", bos=bos).bits_per_byte is None

    @given(st.lists(TEXTS, max_size=12), st.booleans(), st.booleans(), st.sampled_from(KINDS))
    @settings(max_examples=40, deadline=None)
    def test_company_does_not_matter(
        self, texts: list[str], bos: bool, eos: bool, kind: str
    ) -> None:
        lm = make_lm(kind)
        together = lm.score(texts, bos=bos, eos=eos)
        assert len(together) == len(texts)
        for text, found in zip(texts, together, strict=True):
            assert_same(found, lm.score(text, bos=bos, eos=eos))

    def test_long_and_short_texts_together(self, lm: LanguageModel) -> None:
        texts = [" ".join(LINES) * 10, "the cat", "", " ".join(LINES) * 3, "the cat"]
        for text, found in zip(texts, lm.score(texts), strict=True):
            assert_same(found, lm.score(text))

    def test_the_same_text_scores_the_same_and_leaves_no_trace(self, lm: LanguageModel) -> None:
        weights = copy.deepcopy(lm.model.state_dict())
        before = torch.get_rng_state()
        first = lm.score("the cat sat")
        lm.score(LINES)
        lm.extend(lm.start(), "a dog")
        lm.generate("the", tokens=5)
        list(lm.perplexity("a dog").to_json())
        assert lm.score("the cat sat") == first
        assert torch.equal(torch.get_rng_state(), before)
        assert not lm.model.training
        for name, tensor in lm.model.state_dict().items():
            assert torch.equal(tensor, weights[name])

    def test_threads_give_the_serial_numbers(self, lm: LanguageModel) -> None:
        jobs = [LINES[n % len(LINES)] + " the cat" * (n % 5) for n in range(60)]
        serial = [lm.score(job) for job in jobs]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lm.score, jobs)) == serial

    def test_what_is_no_text_is_named(self, lm: LanguageModel) -> None:
        with pytest.raises(InputError, match=r"text 2: '\\ud83d' .* surrogate"):
            lm.score(["fine", "half \ud83d"])
        with pytest.raises(InputError, match="surrogate"):
            lm.extend(lm.start(), "half \ud83d")
        with pytest.raises(InputError, match="surrogate"):
            lm.generate("half \ud83d")
        with pytest.raises(InputError, match="must be a str, but this is bytes"):
            lm.score([b"bytes"])  # type: ignore[list-item]


class TestExtend:
    @given(TEXTS, st.lists(st.integers(0, 40), max_size=5), st.sampled_from(KINDS))
    @settings(max_examples=150, deadline=None)
    @example("hello the cat", [2, 2, 3], "sentencepiece")
    @example("the cat sat", [5, 6], "word")
    def test_pieces_add_up_to_the_whole(self, text: str, cuts: list[int], kind: str) -> None:
        lm = make_lm(kind)
        edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        state, scores = lm.start(), []
        for start, end in pairwise(edges):
            score, state = lm.extend(state, text[start:end])
            scores.append(score)
        whole = lm.score(text)
        total = sum(score.logprob for score in scores)
        # Absolute as well: increments of either sign may cancel.
        assert total == pytest.approx(whole.logprob, rel=RELATIVE, abs=1e-5)
        for count in ("n_tokens", "n_words", "n_bytes"):
            added = sum(getattr(score, count) for score in scores)
            assert added == getattr(whole, count), count
        for score in scores:
            assert len(score.tokens) == len(score.token_logprobs) == len(score.unk)
            if len(score.tokens) == score.n_tokens:  # nothing was withdrawn
                assert score.logprob == pytest.approx(sum(score.token_logprobs), abs=1e-12)

    def test_every_way_to_cut_a_text_in_two(self, lm: LanguageModel) -> None:
        text = "the café, \n\n 日本語🙂 zyx  sat"
        whole = lm.score(text)
        for cut in range(len(text) + 1):
            first, state = lm.extend(lm.start(), text[:cut])
            second, _ = lm.extend(state, text[cut:])
            assert_same(first, lm.score(text[:cut]))
            assert first.logprob + second.logprob == pytest.approx(whole.logprob, rel=RELATIVE)

    def test_a_state_can_be_extended_in_several_ways(self, lm: LanguageModel) -> None:
        _, state = lm.extend(lm.start(), "the cat")
        for ending in ("s", " sat", "", " on the mat"):
            once, _ = lm.extend(state, ending)
            again, _ = lm.extend(state, ending)
            assert once == again
            whole, start = lm.score("the cat" + ending), lm.score("the cat")
            assert once.logprob == pytest.approx(whole.logprob - start.logprob, abs=1e-4)

    def test_tokens_of_a_changed_tail_are_scored_anew(self) -> None:
        lm = make_lm("word")
        first, state = lm.extend(lm.start(), "the c")
        assert first.tokens == ["the", "<unk>"]
        second, state = lm.extend(state, "at sat")
        assert second.tokens == ["cat", "sat"]
        assert second.n_tokens == 1, "one of them replaces one that was counted"
        assert second.n_words == 1
        third, _ = lm.extend(state, " on")
        assert third.tokens == ["on"]
        assert third.logprob == pytest.approx(sum(third.token_logprobs), abs=1e-12)

    def test_nothing_adds_nothing(self, lm: LanguageModel) -> None:
        _, state = lm.extend(lm.start(), "the ca")
        score, after = lm.extend(state, "")
        assert (score.logprob, score.tokens, score.n_bytes) == (0, [], 0)
        assert lm.extend(after, "t sat")[0].logprob == pytest.approx(
            lm.extend(state, "t sat")[0].logprob, rel=RELATIVE
        )

    def test_a_state_of_another_model_is_refused(self) -> None:
        """Of the same shape, and of other kinds; a copy of the model in another process is none."""
        lm, tokenizer = make_lm("word"), make_tokenizer("word")
        other = NetworkPredictor(make_network(tokenizer.vocab_size, seed=1))
        same = NetworkPredictor(copy.deepcopy(lm.model))
        readers = [
            LanguageModel(other, tokenizer=tokenizer),
            LanguageModel(Mixture([lm.predictor, other]), tokenizer=tokenizer),
            lm.adapting("cache"),
            lm.adapting("dynamic"),
        ]
        both = lm.adapting("cache,dynamic")
        _, state = lm.extend(lm.start(), "the cat")
        for reader in readers:
            for wrong, of in ((state, reader), (reader.start(), lm), (reader.start(), both)):
                with pytest.raises(InputError, match="belongs to another model; begin with"):
                    of.extend(wrong, " sat")
                with pytest.raises(InputError, match="belongs to another model; begin with"):
                    of.next(wrong)
            _, own = reader.extend(reader.start(), "the cat")
            assert reader.extend(own, " sat")[0].n_tokens == 1
        state = pickle.loads(pickle.dumps(state))
        expected = lm.extend(state, " sat")[0].logprob
        assert LanguageModel(same, tokenizer=tokenizer).extend(state, " sat")[0].logprob == expected

    def test_what_comes_after_a_long_tail_needs_no_more_memory(self) -> None:
        """A given tokenizer's tail is the whole text: it is read piece by piece."""
        lm = make_lm("spm")
        _, state = lm.extend(lm.start(), "the cat sat on the mat " * 60)
        assert len(state.tail_ids) > 2 * CHUNK_STEPS
        read: list[int] = []
        features = lm.model.features
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                lm.model, "features", lambda ids, s: read.append(len(ids)) or features(ids, s)
            )
            after = lm.next(state)
        assert max(read) <= CHUNK_STEPS
        whole = plain_logprobs(lm.model, [lm.bos_id, *state.tail_ids, 0])[-1]
        np.testing.assert_allclose(after, whole.detach().numpy(), rtol=1e-4, atol=1e-5)  # float32

    def test_the_state_stays_small(self) -> None:
        lm = make_lm("sentencepiece")
        state = lm.start()
        for _ in range(50):
            _, state = lm.extend(state, "the cat sat ")
        assert len(state.tail) < 20


class TestPerplexity:
    @pytest.mark.parametrize("kind", KINDS)
    def test_is_that_of_the_store(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "test.txt"
        path.write_bytes("\n".join([*LINES, "", "CRLF\r", "end\n"]).encode())
        store = make_store(tmp_path, kind, path)
        network = make_network(store.tokenizer().vocab_size)
        lm = LanguageModel(NetworkPredictor(network), tokenizer=store.tokenizer(), name="mine")
        from_store = lm.evaluate(store, "test")
        with path.open(encoding="utf-8") as file:
            for source in (path, file, path.read_bytes().decode()):
                found = lm.perplexity(source)
                assert found.nll_nats == pytest.approx(from_store.nll_nats, rel=1e-6)
                assert (found.tokens, found.words) == (from_store.tokens, from_store.words)
                assert (found.bytes, found.unknown) == (from_store.bytes, from_store.unknown)
        assert (from_store.model, from_store.split) == ("mine", "test")

    def test_reset_is_the_sum_of_the_lines(self, lm: LanguageModel) -> None:
        lines = ["the cat sat\n", "a dog ran\n"]
        found = lm.perplexity(lines, context="reset")
        if lm.tokenizer.eos_ends_lines:
            scores = lm.score([line.rstrip() for line in lines], eos=True)
        else:
            scores = lm.score(lines)
        assert found.nll_nats == pytest.approx(-sum(s.logprob for s in scores), rel=1e-6)

    def test_a_store_of_another_tokenizer_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "test.txt").write_text("the cat\n")
        store: TokenStore = make_store(tmp_path, "char", tmp_path / "test.txt")
        with pytest.raises(
            InputError, match=r"store was made by another .*char.* than byte \(byte"
        ):
            make_lm("byte").evaluate(store, "test")

    def test_no_text(self, lm: LanguageModel, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no text to evaluate"):
            lm.perplexity("")
        with pytest.raises(InputError, match="no such file"):
            lm.perplexity(tmp_path / "missing.txt")


class TestLoad:
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_run_and_a_model_folder_wherever_they_are(self, kind: str, tmp_path: Path) -> None:
        save_lm(kind, tmp_path / "run" / "model")
        (tmp_path / "run" / "model").rename(tmp_path / "run" / "elsewhere")
        (tmp_path / "run" / "elsewhere").rename(tmp_path / "run" / "model")
        before = torch.get_rng_state()
        for path in (tmp_path / "run", str(tmp_path / "run" / "model")):
            assert sglm.load(path).score(LINES[0]) == make_lm(kind).score(LINES[0])
        assert torch.equal(torch.get_rng_state(), before)

    def test_another_tokenizer_is_refused(self, tmp_path: Path) -> None:
        folder = save_lm("byte", tmp_path / "model")
        make_tokenizer("char").save(folder)
        with pytest.raises(InputError, match="not the one the model was trained with"):
            load(folder)

    def test_another_vocabulary_is_refused(self) -> None:
        with pytest.raises(InputError, match="has 100 tokens, but its tokenizer 257"):
            LanguageModel(NetworkPredictor(make_network(100)), tokenizer=make_tokenizer("byte"))

    def test_no_tokenizer(self, tmp_path: Path) -> None:
        folder = save_lm("byte", tmp_path / "model")
        (folder / "tokenizer.json").unlink()
        with pytest.raises(InputError, match="no tokenizer"):
            load(folder)

    def test_no_such_device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InputError, match="--device cpu"):
            load(save_lm("byte", tmp_path / "model"), device="cuda")
        with pytest.raises(InputError, match="did you mean 'cuda'"):
            load(tmp_path / "model", device="cud")
        assert load(tmp_path / "model").model.embedding.device.type == "cpu"
