"""Sums over whole texts: those of their scores."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.scoring import totals
from sglm.scoring.totals import encode_in_parts, text_totals
from tests.tiny_models import KINDS, LINES, make_lm, make_tokenizer

TEXTS = [*LINES, " ".join(LINES * 3), "\n".join(LINES)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [{}, {"eos": True}, {"bos": False}, {"bos": False, "eos": True}])
def test_totals_are_those_of_the_scores(kind: str, how: dict[str, bool]) -> None:
    lm = make_lm(kind)
    found = text_totals(lm.predictor, lm.tokenizer, TEXTS, **how)
    for each, score in zip(found, lm.score(TEXTS, **how), strict=True):
        # The order of the batches differs, and the logits are float32.
        assert -each.nll_nats == pytest.approx(score.logprob, rel=1e-6, abs=1e-9)
        assert (each.tokens, each.words, each.bytes) == (
            score.n_tokens,
            score.n_words,
            score.n_bytes,
        )
        assert each.unknown == sum(score.unk)
        assert (each.has_unscored_bytes or not each.bytes) == (score.bits_per_byte is None)
    assert text_totals(lm.predictor, lm.tokenizer, []) == []


@given(st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(KINDS))
def test_a_long_text_is_encoded_in_parts_with_the_same_ids(text: str, kind: str) -> None:
    tokenizer = make_tokenizer(kind)
    with patch.object(totals, "ENCODED_CHARACTERS", 3):
        assert encode_in_parts(tokenizer, text).tolist() == tokenizer.encode(text)
        assert totals._words(text) == len(text.split())


def test_a_sum_that_is_not_finite_is_of_its_own_text_alone() -> None:
    values, lengths = np.array([1.0, np.inf, 2.0, 3.0]), np.array([2, 0, 2])
    assert totals._sums(values, lengths).tolist() == [np.inf, 0.0, 5.0]
