"""sglm's reader of ARPA files against KenLM's."""

import math
from pathlib import Path

import numpy as np

from sglm.ngram.arpa import read_arpa
from sglm.scoring.ngram_predictor import NgramPredictor
from sglm.scoring.stream import read_on
from tests.extras.conftest import needs
from tests.tiny_models import LINES, make_tokenizer
from tests.toy_ngrams import write_toy_arpa

kenlm = needs("kenlm")


def test_every_word_is_as_probable_as_for_kenlm(tmp_path: Path) -> None:
    tokenizer = make_tokenizer("word")
    for order in (2, 3, 5):
        path = write_toy_arpa(tmp_path / f"{order}.arpa", order=order)
        theirs = kenlm.Model(str(path))
        ours = NgramPredictor(read_arpa(path), tokenizer=tokenizer, name="toy")
        for line in [*LINES, "the the cat cat on on zyx the mat", "mat the ran dog saw the cat"]:
            ids = np.array([tokenizer.eos_id, *tokenizer.encode(line), tokenizer.eos_id])
            nats_T, _ = read_on(ours, ids, ours.start(1))
            expected = [log10 * math.log(10) for log10, _, _ in theirs.full_scores(line)]
            # KenLM has float32.
            np.testing.assert_allclose(-nats_T, expected, rtol=0, atol=1e-5)
