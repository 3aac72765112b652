"""The benchmark beside KenLM, at a size that takes a moment: both score the same tokens."""

import json
import math
import sys
from pathlib import Path

import pytest

from scripts.benchmarks import beside_kenlm
from tests.extras.conftest import needs
from tests.tiny_models import make_lm, save_lm

kenlm = needs("kenlm")
ARPA = """\\data\\
ngram 1=6
ngram 2=1

\\1-grams:
-1.0\t<unk>
0\t<s>
-1.2\t</s>
-0.7\tthe\t-0.2
-0.9\tcat
-1.1\tsat

\\2-grams:
-0.3\tthe cat

\\end\\
"""
LINES = ["the cat sat", "the mat", "", "cat sat the zyx"]


def test_rates_and_perplexities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = save_lm("word", tmp_path / "run")
    (tmp_path / "lines.txt").write_text("\n".join(LINES) + "\n")
    (tmp_path / "ngrams.arpa").write_text(ARPA)
    names = [str(run), str(tmp_path / "ngrams.arpa"), str(tmp_path / "lines.txt")]
    monkeypatch.setattr(sys, "argv", ["beside_kenlm", *names, "--quick", "--json"])
    beside_kenlm.main()
    found = json.loads(capsys.readouterr().out)
    tokens = sum(len(line.split()) + 1 for line in LINES)
    assert found.pop("tokens") == tokens
    assert found.pop("threads") == 1
    nats = -sum(score.logprob for score in make_lm("word").score(LINES, eos=True))
    expected = {
        "KenLM, line by line": 10 ** (-sum(map(kenlm.Model(names[1]).score, LINES)) / tokens),
        "sglm, in batches": math.exp(nats / tokens),
        "sglm, line by line": math.exp(nats / tokens),
    }
    for name, perplexity in expected.items():
        assert found[name]["perplexity"] == pytest.approx(perplexity, rel=1e-5)
        assert found[name]["tokens_per_s"] > 0
