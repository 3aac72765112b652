"""Word error rates of n-best lists: by hand, and by jiwer's own total."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sglm.cli.main import app
from sglm.scoring.nbest import NBest
from sglm.scoring.word_errors import count_word_errors
from tests.extras.conftest import needs
from tests.tiny_models import save_lm

jiwer = needs("jiwer")
REFERENCES = ["the cat sat on the mat", "a dog ran", "the dog saw a mat"]
# Of each list, the best by score has errors; another one has none, but for the last list.
LISTS = [
    [("the mat sat on the mat", 0.3), ("the cat sat on the mat", 0.0)],
    [("a dog and ran", 0.2), ("a dog ran", 0.1)],
    [("the dog mat", 0.5), ("dog saw the mat", 0.4)],
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    lines = [f"{text}\t{score}\n" for candidates in LISTS for text, score in candidates]
    (tmp_path / "beams.tsv").write_text("".join(lines))
    (tmp_path / "references.txt").write_text("\n".join(REFERENCES) + "\n")
    save_lm("word", tmp_path / "run")
    return tmp_path


def rescore(place: Path, *arguments: object) -> Result:
    command = ["rescore", str(place / "run"), str(place / "beams.tsv"), "--beam-size", "2"]
    references = ["--references", str(place / "references.txt")]
    return CliRunner().invoke(app, [*command, *references, *map(str, arguments)])


def test_errors_by_hand() -> None:
    lists = NBest(texts=[text for each in LISTS for text, _ in each], scores_LK=np.zeros((3, 2)))
    counted = count_word_errors(lists, REFERENCES)
    # One word wrong; one too many; two missing; one missing and one wrong.
    assert counted.errors_LK.tolist() == [[1, 0], [1, 0], [2, 2]]
    assert counted.words == 14
    assert counted.rate(np.array([0, 0, 0])) == pytest.approx(4 / 14)
    assert counted.oracle == pytest.approx(2 / 14)
    chosen = [lists.texts[0], lists.texts[3], lists.texts[4]]
    assert counted.rate(np.array([0, 1, 0])) == pytest.approx(jiwer.wer(REFERENCES, chosen))
    # Where nothing was said, every word is an error.
    silent = count_word_errors(lists, ["", "a dog ran", ""])
    assert silent.errors_LK.tolist() == [[6, 6], [1, 0], [3, 4]]
    assert silent.words == 3


def test_rates_before_and_after(place: Path) -> None:
    result = rescore(place, "--alpha", 0, "--json")
    assert result.exit_code == 0, result.output
    wer = json.loads(result.stdout)["wer"]
    assert wer == {"before": 4 / 14, "after": 4 / 14, "oracle": 2 / 14, "words": 14}
    assert "word error rate 28.57 % by score alone, 28.57 % rescored, 14.29 % at best" in (
        result.stderr
    )
    chosen = rescore(place, "--alpha", 0.7, "--beta", 0.2, "--json")
    found = json.loads(chosen.stdout)
    texts = [best["text"] for best in found["best"]]
    assert found["wer"]["after"] == pytest.approx(jiwer.wer(REFERENCES, texts))


def test_tuned_weights_give_the_rate_that_is_told(place: Path) -> None:
    tuned = json.loads(rescore(place, "--tune", "--json").stdout)
    assert tuned["tuned"] is True
    assert tuned["wer"]["after"] <= tuned["wer"]["before"]
    given = rescore(place, "--alpha", tuned["alpha"], "--beta", tuned["beta"], "--json")
    assert json.loads(given.stdout) == {**tuned, "tuned": False}
    assert "tuned on these very lists" in rescore(place, "--tune").stderr
    assert json.loads(rescore(place, "--tune", "--alpha", 0.3, "--json").stdout)["alpha"] == 0.3
