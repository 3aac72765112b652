"""Evaluations: measures with their units, and what JSON shows of them."""

import ast
import json
import math
import subprocess
import sys

import pytest

from sglm.scoring.results import Evaluation


def test_units() -> None:
    evaluation = Evaluation(nll_nats=6.0, tokens=3, words=2, bytes=12, unknown=0)
    assert evaluation.token_ppl == pytest.approx(math.exp(2))
    assert evaluation.word_ppl == pytest.approx(math.exp(3))
    assert evaluation.bits_per_byte == pytest.approx(6 / (12 * math.log(2)))


def test_unknown_words_hide_bytes() -> None:
    assert Evaluation(nll_nats=6.0, tokens=3, words=2, bytes=12, unknown=1).bits_per_byte is None


def test_the_keys_of_the_contract() -> None:
    evaluation = Evaluation(
        nll_nats=6.0,
        tokens=3,
        words=2,
        bytes=12,
        unknown=0,
        context="reset",
        model="runs/tiny",
        split="test",
        seconds=1.23456,
        lines=40,
        lines_in_training=3,
    )
    assert evaluation.to_json() == {
        "model": "runs/tiny",
        "split": "test",
        "tokens": 3,
        "words": 2,
        "bytes": 12,
        "nll_nats": 6.0,
        "token_ppl": evaluation.token_ppl,
        "word_ppl": evaluation.word_ppl,
        "bits_per_byte": evaluation.bits_per_byte,
        "context": "reset",
        "adapt": "none",
        "seconds": 1.235,
        "lines": 40,
        "lines_in_training": 3,
    }


@pytest.mark.parametrize("nll_nats", [1e9, math.inf, math.nan])
def test_no_number_breaks_the_json(nll_nats: float) -> None:
    evaluation = Evaluation(nll_nats=nll_nats, tokens=3, words=0, bytes=0, unknown=0)
    assert not math.isfinite(evaluation.token_ppl)
    shown = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert shown["token_ppl"] is shown["word_ppl"] is shown["bits_per_byte"] is None


def test_results_need_nothing_that_reads_a_file_or_a_model() -> None:
    code = "import sys, sglm.scoring.results; print([m for m in sys.modules if 'sglm.' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    scoring = {"sglm.scoring", *(f"sglm.scoring.{n}" for n in ("metrics", "results", "words"))}
    assert set(ast.literal_eval(done.stdout)) == {"sglm.errors", *scoring}
