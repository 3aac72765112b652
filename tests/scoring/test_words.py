"""Offsets, words, ranks, entropies: against the text, and against a direct computation."""

import io
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.scoring.distribution import measure_distributions
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.results import Score
from sglm.scoring.texts import LINES_PER_CALL
from sglm.text.spm_tokenizer import SpmTokenizer
from tests.tiny_models import (
    KINDS,
    LINES,
    OWN_KINDS,
    make_lm,
    make_network,
    make_tokenizer,
    spm_model,
)

TEXTS = [*LINES, " the\u3000cat \n sat\t", "\n\nthe mat\n", "\u2028a\x85b", "a\u0301 🙂🙂"]
WHITE = [chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()]


@pytest.mark.parametrize("kind", OWN_KINDS)
@given(text=st.text(alphabet=st.sampled_from("the cat 本é🙂\n\t\u3000▁\0"), max_size=40))
def test_offsets_slice_the_text(kind: str, text: str) -> None:
    tokenizer = make_tokenizer(kind)
    ids = tokenizer.encode(text)
    offsets = tokenizer.offsets(text, ids)
    assert len(offsets) == len(ids)
    covered = ["white space" if c.isspace() else "" for c in text]
    for (start, end), token_id in zip(offsets, ids, strict=True):
        assert 0 <= start < end <= len(text)
        covered[start:end] = ["token"] * (end - start)
        known = token_id not in (tokenizer.unk_id, tokenizer.eos_id)
        if known and kind in ("word", "char"):
            assert text[start:end] == tokenizer.token(token_id)
        elif known and tokenizer.decode([token_id]) != "\ufffd":
            assert text[start:end] == tokenizer.decode([token_id])
    assert all(covered)
    assert offsets == sorted(offsets)
    if kind != "word":
        assert "white space" not in covered


def test_every_white_space_sets_words_apart_as_it_does_for_the_tokenizer() -> None:
    tokenizer = make_tokenizer("word")
    for white in WHITE:
        text = f"the{white}cat"
        offsets = tokenizer.offsets(text, tokenizer.encode(text))
        assert [text[start:end] for start, end in offsets if text[start:end] != "\n"] == [
            "the",
            "cat",
        ]


def direct(lm: LanguageModel, text: str) -> tuple[list[float], list[int], list[float], list[float]]:
    """Log-probability, rank, entropy and nats of a word's beginning, token by token."""
    ids = lm.tokenizer.encode(text)
    begins = [lm.tokenizer.begins_word(i) for i in range(lm.tokenizer.vocab_size)]
    state, logprobs, ranks, entropies, boundaries = lm.predictor.start(1), [], [], [], []
    for read, following in zip([lm.tokenizer.eos_id, *ids], [*ids, None], strict=True):
        blocks, state = lm.predictor.distributions(torch.tensor([[read]]), state)
        row = torch.cat([block for _, block in blocks])[0].double().numpy().copy()
        probabilities = np.exp(row)
        boundaries.append(-math.log(probabilities[begins].sum()))
        if following is not None:
            logprobs.append(row[following])
            ranks.append(1 + int((row > row[following]).sum()))
            entropies.append(float(-(probabilities * row).sum()))
    return logprobs, ranks, entropies, boundaries


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_and_entropies_are_those_of_a_direct_computation(kind: str) -> None:
    lm = make_lm(kind)
    for text, score in zip(TEXTS, lm.score(TEXTS, distribution=True), strict=True):
        logprobs, ranks, entropies, boundaries = direct(lm, text)
        # Float32 sums over a vocabulary, in lanes and one by one.
        assert score.token_logprobs == pytest.approx(logprobs, abs=1e-5)
        assert score.ranks == ranks
        assert score.entropies == pytest.approx(entropies, abs=1e-5)
        assert score.boundaries is not None
        assert score.boundaries[0] == 0
        assert score.boundaries[1:] == pytest.approx(boundaries[1:], abs=1e-5)
        plain = lm.score(text)
        assert plain.ranks is plain.entropies is plain.boundaries is None
        assert plain.token_logprobs == pytest.approx(score.token_logprobs, abs=1e-5)
        assert plain.offsets == score.offsets


@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_words_add_up_to_the_text(kind: str, eos: bool) -> None:
    lm = make_lm(kind)
    for text in TEXTS:
        score = lm.score(text, distribution=True, eos=eos)
        plain, corrected = score.words(base="e"), score.words(base="e", correction="bow")
        assert [word.word for word in plain] == text.split()
        assert all(text[word.start : word.end] == word.word for word in plain)
        if not plain:
            continue
        assert math.fsum(word.surprisal for word in plain) == pytest.approx(-score.logprob)
        assert score.boundaries is not None
        assert math.fsum(word.surprisal for word in corrected) == pytest.approx(
            -score.logprob + score.boundaries[-1]
        )
        assert sum(word.n_tokens for word in plain) == score.n_tokens
        for word in plain:
            assert (word.rank is None) == (word.n_tokens != 1)
        # One bit is ln 2 nats, a ban ln 10.
        for base, nats in ((2, math.log(2)), (10, math.log(10))):
            in_units = score.words(base=base)  # type: ignore[arg-type]
            assert [word.surprisal * nats for word in in_units] == pytest.approx(
                [word.surprisal for word in plain]
            )
            assert in_units[0].entropy == pytest.approx(plain[0].entropy / nats)  # type: ignore[operator]


def test_a_corrected_word_is_as_probable_as_all_that_can_follow_it() -> None:
    """By hand, of "the cat" as characters: p(the)·p(white space or end | the)."""
    lm = make_lm("char")
    score = lm.score("the cat", distribution=True)
    logprobs, _, _, boundaries = direct(lm, "the cat")
    first, second = score.words(base="e", correction="bow")
    assert first.surprisal == pytest.approx(-sum(logprobs[:3]) + boundaries[3], abs=1e-5)
    assert second.surprisal == pytest.approx(
        -sum(logprobs[3:]) - boundaries[3] + boundaries[7], abs=1e-5
    )
    # A word-level vocabulary has nothing to correct.
    words = make_lm("word").score("the cat", distribution=True)
    assert words.words() == words.words(correction="bow")


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_is_read_and_not_scored(kind: str) -> None:
    lm = make_lm(kind)
    alone, after = lm.score("cat sat", context="the "), lm.score("the cat sat")
    assert alone.token_logprobs == pytest.approx(after.token_logprobs[-alone.n_tokens :], abs=1e-5)
    assert [word.word for word in alone.words()] == ["cat", "sat"]
    assert [("cat sat")[word.start : word.end] for word in alone.words()] == ["cat", "sat"]
    # Where the white space is a token of its own, it lies in the context.
    shared = slice(0 if kind in ("sentencepiece", "word") else 1, None)
    assert [w.surprisal for w in alone.words()][shared] == pytest.approx(
        [w.surprisal for w in after.words()[1:]][shared], abs=1e-5
    )
    # White space that was still to come is the word before's, also where that is in the context.
    one = lm.score("cat sat", context="the ", distribution=True).words(correction="bow")
    all_of_it = lm.score("the cat sat", distribution=True).words(correction="bow")
    if kind == "sentencepiece":
        assert [w.surprisal for w in one] == pytest.approx(
            [w.surprisal for w in all_of_it[1:]], abs=1e-4
        )
    assert all(math.isfinite(word.surprisal) for word in one)


@pytest.mark.parametrize("count", [1, 3, 50])  # alone, in lanes, as a tree
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_go_on_from_what_they_have_in_common(kind: str, count: int) -> None:
    lm = make_lm(kind)
    for prefix in ("the cat", "a dog saw the ", "", "naïve cafés\n"):
        candidates = [f" sat on {i} mats"[: 4 + i] for i in range(count)]
        found = lm.score_nbest(prefix, candidates)
        for candidate, score in zip(candidates, found, strict=True):
            whole = lm.score(prefix + candidate)
            own = whole.token_logprobs[whole.n_tokens - score.n_tokens :]
            assert score.token_logprobs == pytest.approx(own, abs=1e-5)
            assert score.text == candidate
    with pytest.raises(InputError, match="str"):
        lm.score_nbest("the", [3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="a list of texts, but this is one: ' cat'"):
        lm.score_nbest("the", " cat")


@pytest.mark.parametrize("kind", KINDS)
def test_what_may_come_next(kind: str) -> None:
    lm = make_lm(kind)
    state = lm.start()
    for piece in ("the ca", "t sat"):
        _, state = lm.extend(state, piece)
    logprobs_V = lm.next(state)
    assert logprobs_V.shape == (lm.tokenizer.vocab_size,)
    assert np.exp(logprobs_V.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
    whole = lm.score("the cat sat", eos=True)
    assert logprobs_V[lm.tokenizer.eos_id] == pytest.approx(whole.token_logprobs[-1], abs=1e-5)


@pytest.mark.parametrize(
    "together", [list, iter, lambda lines: [lines[:1], *lines[1:2], lines[2:]]]
)
@pytest.mark.parametrize("kind", OWN_KINDS)
def test_running_lines_are_those_of_one_text(
    kind: str, together: Callable[[list[str]], Iterable[str | list[str]]]
) -> None:
    lm = make_lm(kind)
    running = list(lm.score_running(together(LINES)))
    whole = lm.score("\n".join(LINES), distribution=True)
    logprobs = dict(
        zip(
            zip(whole.offsets, range(whole.n_tokens), strict=True),
            whole.token_logprobs,
            strict=True,
        )
    )
    by_place: dict[int, list[float]] = {}
    for ((start, _), _), logprob in logprobs.items():
        by_place.setdefault(start, []).append(logprob)
    start = 0
    for line, score in zip(LINES, running, strict=True):
        expected = [x for place in range(start, start + len(line)) for x in by_place.get(place, [])]
        assert score.token_logprobs == pytest.approx(expected, abs=1e-5)
        assert [word.word for word in score.words(correction="bow")] == line.split()
        start += len(line) + 1


@pytest.mark.parametrize("together", [list, iter])
@pytest.mark.parametrize("wrong", [b"the cat", "half a pair \ud800"])
def test_lines_before_a_wrong_one_are_scored(wrong: Any, together: Callable[..., Any]) -> None:
    lm = make_lm("word")
    scores = lm.score_running(together(["the cat", "", wrong, "a mouse"]))
    assert [next(scores).n_tokens, next(scores).n_tokens] == [2, 0]
    with pytest.raises(InputError, match="text 3: "):
        next(scores)


def test_a_list_longer_than_what_is_read_at_once() -> None:
    lm = make_lm("word")
    lines = ["the cat sat", "on the mat"] * LINES_PER_CALL
    listed, one_by_one = list(lm.score_running(lines)), list(lm.score_running(iter(lines)))
    assert [x for score in listed for x in score.token_logprobs] == pytest.approx(
        [x for score in one_by_one for x in score.token_logprobs], abs=1e-5
    )


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_have_their_place_in_the_whole_text(kind: str) -> None:
    lm = make_lm(kind)
    text = "the naïve cat — 日本語 sat"
    state = lm.start()
    last: Score | None = None
    for cut in range(0, len(text), 3):
        last, state = lm.extend(state, text[cut : cut + 3])
    whole = lm.score(text)
    assert last is not None
    assert last.offsets == whole.offsets[len(whole.offsets) - len(last.offsets) :]
    with pytest.raises(InputError, match="score\\(text\\)"):
        last.words()


def test_wrong_words_are_named() -> None:
    lm = make_lm("char")
    score = lm.score("the cat")
    with pytest.raises(InputError, match="base 3 is unknown; give 2"):
        score.words(base=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="correction 'bos' is unknown; did you mean 'bow'"):
        score.words(correction="bos")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="distribution=True"):
        score.words(correction="bow")
    with pytest.raises(InputError, match="give no context"):
        lm.score("the", bos=False, context="a ")


@pytest.mark.parametrize("kind", KINDS)
def test_fragments_and_nothing(kind: str) -> None:
    lm = make_lm(kind)
    for text in ("", " ", "the", "the cat"):
        for eos in (False, True):
            score = lm.score(text, bos=False, eos=eos, distribution=True)
            assert len(score.offsets) == score.n_tokens
            assert score.ranks is not None
            assert len(score.ranks) == score.n_tokens
            total = math.fsum(word.surprisal for word in score.words(base="e"))
            assert total == pytest.approx(-score.logprob if text.split() else 0.0)


def test_a_fragment_hands_over_the_beginning_of_its_next_word() -> None:
    """The first character is not scored, but that a word begins after it was predicted."""
    lm = make_lm("char")
    fragment = lm.score("a cat", bos=False, distribution=True)
    begins_V = torch.tensor(lm.tokenizer.word_beginnings)
    ids_T1 = np.array(lm.tokenizer.encode("a cat"))[:, None]
    read, _ = measure_distributions(
        lm.predictor, ids_T1[:-1], ids_T1[1:], state=lm.predictor.start(1), begins_V=begins_V
    )
    assert fragment.boundaries is not None
    assert fragment.boundaries[:-1] == pytest.approx(read.boundary[:, 0].tolist(), rel=1e-5)
    _, cat = fragment.words(base="e", correction="bow")
    begins, ends = fragment.boundaries[0], fragment.boundaries[-1]
    assert begins > 0
    assert cat.surprisal == pytest.approx(-fragment.logprob - begins + ends)


class Certain:
    """Predicts id + 1 with probability one, and everything else with none."""

    vocab_size, device = 4, torch.device("cpu")

    def distributions(
        self, ids_TB: torch.Tensor, state: int, *, last_steps: int | None = None
    ) -> tuple[Iterator[tuple[slice, torch.Tensor]], int]:
        following_N = (ids_TB.flatten() + 1) % self.vocab_size
        logprobs_NV = torch.full((len(following_N), self.vocab_size), -math.inf)
        logprobs_NV[range(len(following_N)), following_N] = 0.0
        return iter([(slice(0, len(following_N)), logprobs_NV)]), state


def test_what_is_impossible_adds_nothing_to_the_entropy() -> None:
    ids_TB, begins_V = np.array([[0], [1], [2]]), torch.tensor([False, False, True, False])
    read, _ = measure_distributions(Certain(), ids_TB, ids_TB + 1, state=0, begins_V=begins_V)  # type: ignore[arg-type]
    assert read.entropy.tolist() == [[0], [0], [0]]
    assert read.logprob.tolist() == [[0], [0], [0]]
    assert read.rank.tolist() == [[1], [1], [1]]
    assert read.boundary.tolist() == [[math.inf], [0], [math.inf]]


def test_pieces_of_one_character_stay_with_its_word() -> None:
    """A given SentencePiece model may write one character as several pieces (NFKC: … as ...)."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["wait . . . done", "done . wait", "a . b"] * 50),
        model_writer=model,
        model_type="unigram",
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SpmTokenizer(model.getvalue())
    lm = LanguageModel(NetworkPredictor(make_network(tokenizer.vocab_size)), tokenizer=tokenizer)
    first, second = lm.score("wait… done", distribution=True).words()
    spelled, _ = lm.score("wait... done", distribution=True).words()
    assert first.n_tokens == spelled.n_tokens > second.n_tokens
    assert first.surprisal == pytest.approx(spelled.surprisal)
    one, other = lm.score_nbest("wait", ["… done", "... done"])
    assert one.n_tokens == other.n_tokens
    assert one.logprob == pytest.approx(other.logprob)


@pytest.mark.parametrize("kind", ["sentencepiece", "char"])
def test_a_scored_end_is_the_last_word_s_end(kind: str) -> None:
    """With `<eos>` scored nothing is left to predict: the correction moves within the text."""
    score = make_lm(kind).score("the cat sat", distribution=True, eos=True)
    assert score.boundaries is not None
    assert score.boundaries[-1] == 0
    corrected = score.words(base="e", correction="bow")
    assert math.fsum(word.surprisal for word in corrected) == pytest.approx(-score.logprob)


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_that_ends_in_a_word_is_not_scored_either(kind: str) -> None:
    """Its last tokens could have changed, so they are encoded together with the text."""
    lm = make_lm(kind)
    context, text = "the cat", " sat on the mat"
    score, whole = lm.score(text, context=context), lm.score(context + text)
    own = [n for n, (_, end) in enumerate(whole.offsets) if end > len(context)]
    assert score.tokens == [whole.tokens[n] for n in own]
    assert score.token_logprobs == pytest.approx([whole.token_logprobs[n] for n in own], abs=1e-5)
    # That a word begins after the context was predicted: the correction takes it off the first.
    expected = lm.score(text, context=context, distribution=True)
    before = lm.score(context + text, distribution=True).boundaries
    if before is not None and kind != "word":
        assert expected.boundaries == pytest.approx(before[-len(own) - 1 :], abs=1e-5)


def test_a_wrong_line_far_behind_is_named_by_its_number() -> None:
    lines: list[Any] = ["the cat"] * (LINES_PER_CALL + 2)
    with pytest.raises(InputError, match=f"text {LINES_PER_CALL + 3}: "):
        list(make_lm("word").score_running([*lines, b"the cat"]))


def test_one_unknown_token_makes_its_word_unknown() -> None:
    """Also where it is not the word's first."""
    words = make_lm("char").score("the caxt sat").words()
    assert [(word.word, word.unk) for word in words] == [
        ("the", False), ("caxt", True), ("sat", False)
    ]  # fmt: skip


def test_where_words_begin_is_told_only_by_tokenizers_that_mark_it() -> None:
    """Of one that puts the space behind a word, the correction would be of something else."""
    model = spm_model(model_type="unigram", vocab_size=60, treat_whitespace_as_suffix=True)
    tokenizer = SpmTokenizer(model)
    assert not tokenizer.marks_words
    lm = LanguageModel(NetworkPredictor(make_network(tokenizer.vocab_size)), tokenizer=tokenizer)
    for score in (lm.score("the cat", distribution=True), *lm.score_running(["the cat"])):
        assert score.ranks is not None
        assert score.boundaries is None
        with pytest.raises(InputError, match='correction "bow" needs tokens that mark'):
            score.words(correction="bow")
