"""Continuing a text: draws that follow the model, a seed and the user's numbers."""

import math

import numpy as np
import pytest
import torch

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.scoring.batch import sequence_nlls
from sglm.scoring.generate import _draw, generate_ids
from sglm.scoring.predictor import NetworkPredictor
from tests.tiny_models import KINDS, make_lm, make_network, make_tokenizer


@pytest.fixture(params=KINDS)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return make_lm(request.param)


def test_a_seed_gives_one_text(lm: LanguageModel) -> None:
    first = lm.generate("the cat", tokens=20, seed=3)
    assert first == lm.generate("the cat", tokens=20, seed=3)
    assert first.startswith("the cat")
    assert len({lm.generate("the cat", tokens=20, seed=seed) for seed in range(8)}) > 1
    assert len({lm.generate("the cat", tokens=20) for _ in range(8)}) > 1


@pytest.mark.parametrize("prompt", ["", "the cat", "the  cat\n", "zyx — 日本語 "])
def test_the_prompt_stays_as_it_is(lm: LanguageModel, prompt: str) -> None:
    assert lm.generate(prompt, tokens=0, seed=0) == prompt
    longer = lm.generate(prompt, tokens=30, seed=0)
    assert longer.startswith(prompt)
    assert len(longer) > len(prompt)


def test_greedy_takes_the_likeliest(lm: LanguageModel) -> None:
    tokenizer = lm.tokenizer
    ids, greedy = tokenizer.encode("the cat"), []
    for _ in range(10):
        start = [tokenizer.eos_id, *ids, *greedy]
        ends = [np.array([*start, i]) for i in range(tokenizer.vocab_size)]
        scores = [nlls[-1] for nlls in sequence_nlls(lm.predictor, ends)]
        if tokenizer.unk_id is not None:
            scores[tokenizer.unk_id] = math.inf
        best = int(np.argmin(scores))
        if best == tokenizer.eos_id and not tokenizer.eos_ends_lines:
            break
        greedy.append(best)
    expected = tokenizer.decode([*ids, *greedy])
    for settings_ in ({"temperature": 0.0}, {"temperature": 1e-310}, {"top_p": 1e-9}):
        assert lm.generate("the cat", tokens=10, seed=1, **settings_) == expected


def test_draws_follow_the_prediction() -> None:
    """10,000 draws against the probabilities themselves, at two temperatures."""
    logprobs_V = torch.tensor([0.0, 1.0, 2.0, -1.0], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for temperature in (1.0, 0.5):
        expected = (logprobs_V / temperature).softmax(0)
        draws = [_draw(logprobs_V, temperature, top_p=None, random=random) for _ in range(10_000)]
        frequencies = torch.bincount(torch.tensor(draws), minlength=4) / len(draws)
        # Four standard deviations of a frequency out of 10,000 draws: 4 · √(¼ / 10,000).
        assert (frequencies - expected).abs().max() < 0.02


def test_the_nucleus_is_the_smallest_that_has_the_mass() -> None:
    logprobs_V = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    random = torch.Generator().manual_seed(0)
    for top_p, nucleus in ((0.4, {1}), (0.6, {1, 2}), (0.79, {1, 2}), (0.9, {0, 1, 2})):
        drawn = {_draw(logprobs_V, 1.0, top_p=top_p, random=random) for _ in range(300)}
        assert drawn == nucleus, top_p
    equal_V = torch.zeros(4, dtype=torch.float64)
    assert len({_draw(equal_V, 1.0, top_p=0.5, random=random) for _ in range(300)}) == 2, (
        "½ is reached"
    )


@pytest.mark.parametrize("kind", ["sentencepiece", "word", "char"])
def test_unknown_tokens_are_never_drawn(kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    network = make_network(tokenizer.vocab_size)
    unknown = [i for i in range(tokenizer.vocab_size) if tokenizer.token(i) == "<unk>"]
    with torch.no_grad():
        network.softmax_bias[unknown] = 50.0  # the model wants nothing else
    text = LanguageModel(NetworkPredictor(network), tokenizer=tokenizer).generate(
        "", tokens=30, seed=0
    )
    assert text
    assert "<unk>" not in text
    assert "\ufffd" not in text or kind == "sentencepiece"


def test_generation_ends_where_eos_ends_documents_and_goes_on_where_it_ends_lines() -> None:
    for kind in KINDS:
        tokenizer = make_tokenizer(kind)
        network = make_network(tokenizer.vocab_size)
        with torch.no_grad():
            network.softmax_bias[tokenizer.eos_id] = 50.0
        text = LanguageModel(NetworkPredictor(network), tokenizer=tokenizer).generate(
            "the", tokens=3, seed=0
        )
        assert text == ("the\n\n\n" if tokenizer.eos_ends_lines else "the")


def test_nothing_is_drawn_after_the_end() -> None:
    network = make_network(257)
    with torch.no_grad():
        network.softmax_bias[256] = 50.0
    for stop_at_eos, expected in ((True, []), (False, [256] * 3)):
        drawn = generate_ids(
            NetworkPredictor(network),
            [65],
            bos_id=256,
            eos_id=256,
            tokens=3,
            temperature=1.0,
            top_p=None,
            seed=0,
            stop_at_eos=stop_at_eos,
        )
        assert drawn == expected


def test_words_are_joined_as_they_are_written() -> None:
    lm = make_lm("word")
    for prompt, start in (("the", "the "), ("the ", "the "), ("the\n", "the\n")):
        text = lm.generate(prompt, tokens=12, seed=5)
        assert text.startswith(start)
        assert "  " not in text
        assert len(lm.tokenizer.encode(text)) == 13 + prompt.count("\n")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": -1}, "number of tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
    ],
)
def test_numbers_out_of_range_are_named(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make_lm("byte").generate("the", **wrong)
