"""ARPA files and n-best lists of others: read as they are, or refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.ngram.arpa import read_arpa
from sglm.scoring.nbest import read_nbest
from tests.fuzz.examples import TEXTS, examples, may_be_refused, spoilt
from tests.toy_ngrams import write_toy_arpa


@given(data=st.data())
@examples(60)
def test_any_accident_to_an_arpa_file_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("arpa") / "toy.arpa"
    path.write_bytes(data.draw(spoilt(write_toy_arpa(path).read_bytes())))
    with may_be_refused(path):
        model = read_arpa(path)
        known = range(-1, len(model.words))
        history_NK = np.array([(one, other) for one in known for other in known])
        assert not np.isnan(model.distributions(history_NK)).any()


@given(
    st.lists(st.tuples(TEXTS, st.floats(), st.sampled_from(["\t", " ", ""])), max_size=5),
    st.integers(1, 3),
)
@examples(60)
def test_any_lists_are_read_as_they_are_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    candidates: list[tuple[str, float, str]],
    beam_size: int,
) -> None:
    path = tmp_path_factory.mktemp("beams") / "beams.tsv"
    lines = [f"{text}{between}{score}" for text, score, between in candidates]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    with may_be_refused(path):
        lists = read_nbest(path, beam_size)
        assert lists.texts == [text for text, _, _ in candidates]
        assert lists.scores_LK.ravel().tolist() == [score for _, score, _ in candidates]
