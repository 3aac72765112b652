"""What stands before a text: what the training text had there, and the same in all that scores.

A `.txt` file of lines holds no `<eos>` where newlines are tokens, so its model never learns what
comes after one: a text begins as a line does, after a newline.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import sglm
import sglm.kenlm
from sglm.config import parse_config
from sglm.errors import InputError
from sglm.scoring.evaluate import half_of
from sglm.scoring.totals import text_totals
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from tests.conftest import make_text
from tests.tiny_models import make_lm, plain_nlls

LINE = "the cat sees the moon ."


def make_store(folder: Path, tokenizer: str, *, records: bool = False) -> TokenStore:
    source = folder / ("text.jsonl" if records else "text.txt")
    lines = make_text(800).splitlines()
    texts = [json.dumps({"text": line}) for line in lines] if records else lines
    source.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return prepare([str(source)], folder / "store", StoreSettings(tokenizer=tokenizer))


@pytest.mark.parametrize("kind", ["sentencepiece", "char", "byte"])
def test_lines_begin_after_a_newline_and_records_after_eos(kind: str, tmp_path: Path) -> None:
    for records in (False, True):
        folder = tmp_path / str(records)
        folder.mkdir()
        store = make_store(folder, kind, records=records)
        tokenizer = store.tokenizer()
        assert store.bos_id == (tokenizer.eos_id if records else tokenizer.encode("\n")[-1])


def test_where_newlines_are_no_tokens_or_never_occur_it_is_eos(tmp_path: Path) -> None:
    words = make_store(tmp_path, "word")
    assert words.bos_id == words.tokenizer().eos_id
    assert make_lm("word").lines_are_texts
    assert not make_lm("char").lines_are_texts  # of nothing that is known
    source = tmp_path / "line.txt"
    source.write_text("abcd " * 200)  # no newline, no end of a record
    store = prepare(
        [str(source)], tmp_path / "one", StoreSettings(tokenizer="byte", valid=0, test=0)
    )
    assert store.bos_id == store.tokenizer().eos_id


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on lines, by characters."""
    place = tmp_path_factory.mktemp("bos")
    make_store(place, "char")
    config = {
        "model": {"layers": 1, "hidden": 48},
        "train": {"batch": 8, "window": 20},
        "optimizer": {"learning_rate": 1e-2},
        "schedule": {"mode": "real", "unit": "steps", "cycles": [150.0, 150.0]},
    }
    sglm.fit(parse_config(config, "test"), place / "store", place / "run")
    return place / "run"


def test_everything_that_scores_starts_there(run: Path) -> None:
    lm = sglm.load(run)
    (newline_id,) = lm.tokenizer.encode("\n")
    ids = lm.tokenizer.encode(LINE)
    expected = plain_nlls(lm.model, [newline_id, *ids])
    assert lm.bos_id == newline_id
    assert lm.lines_are_texts
    near = pytest.approx(-sum(expected), rel=1e-5)  # float32 against float64
    assert lm.score(LINE).logprob == near
    assert lm.score([LINE, "a"])[0].token_logprobs == pytest.approx(
        [-nll for nll in expected], rel=1e-4, abs=1e-5
    )
    assert lm.score_nbest("the ", [LINE[4:]])[0].logprob == pytest.approx(
        -sum(expected[4:]), rel=1e-5
    )
    assert next(lm.score_running([LINE])).logprob == near
    first, state = lm.extend(lm.start(), LINE[:9])
    second, _ = lm.extend(state, LINE[9:])
    assert first.logprob + second.logprob == near
    assert lm.next(lm.start())[ids[0]] == pytest.approx(-expected[0], rel=1e-4)
    for context in ("carried", "reset"):
        assert -lm.perplexity([LINE], context=context).nll_nats == near  # type: ignore[arg-type]
    assert -lm.adapting("cache", weight=0.0).score(LINE).logprob == pytest.approx(
        sum(expected), rel=1e-5
    )
    (total,) = text_totals(lm.predictor, lm.tokenizer, [LINE], bos_id=lm.bos_id)
    assert -total.nll_nats == near
    kenlm = sglm.kenlm.Model(str(run)).score(LINE, eos=False)
    assert kenlm * math.log(10) == near
    ended = lm.score(LINE, eos=True)
    assert ended.tokens[-1] == "\n"
    assert -ended.logprob == pytest.approx(
        sum(plain_nlls(lm.model, [newline_id, *ids, newline_id])), rel=1e-5
    )
    (total,) = text_totals(lm.predictor, lm.tokenizer, [LINE], bos_id=lm.bos_id, eos=True)
    assert -total.nll_nats == pytest.approx(ended.logprob, rel=1e-5)
    kenlm = sglm.kenlm.Model(str(run)).score(LINE, eos=True)
    assert kenlm * math.log(10) == pytest.approx(ended.logprob, rel=1e-5)
    greedy = lm.generate("", tokens=1, temperature=0)
    assert lm.tokenizer.encode(greedy) == [int(np.argmax(lm.next(lm.start())))]


def test_snapshots_keep_it(run: Path, tmp_path: Path) -> None:
    mean = sglm.load(sglm.average_snapshots(run, tmp_path / "mean"))
    assert sglm.load_ensemble(run).bos_id == mean.bos_id == sglm.load(run).bos_id


def test_the_training_validates_from_there(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    reported = min(json.loads(line)["token_ppl"] for line in lines)
    evaluated = sglm.load(run).evaluate(run.parent / "store", "valid")
    assert evaluated.token_ppl == pytest.approx(reported, rel=1e-6)


def test_lines_of_a_split_can_be_read_each_on_its_own(run: Path) -> None:
    """As those of the same text in a file."""
    lm, store = sglm.load(run), TokenStore.open(run.parent / "store")
    text = lm.tokenizer.decode(store.ids("valid").tolist())
    expected = lm.perplexity(text.splitlines(keepends=True), context="reset")
    found = lm.evaluate(store, "valid", "reset")
    assert found.tokens == expected.tokens
    assert found.nll_nats == pytest.approx(expected.nll_nats, rel=1e-6)
    assert found.nll_nats > lm.evaluate(store, "valid").nll_nats


def test_a_half_ends_where_a_line_ends(run: Path) -> None:
    """So that nothing is read on from the middle of a line that the other half begins."""
    lm, store = sglm.load(run), TokenStore.open(run.parent / "store")
    ids, ends = store.ids("valid"), {"eos_id": lm.tokenizer.eos_id, "bos_id": lm.bos_id}
    first, second = half_of(ids, "first", **ends), half_of(ids, "second", **ends)
    assert lm.tokenizer.decode(first.tolist()).endswith("\n")
    assert np.array_equal(np.concatenate((first, second)), ids)
    assert 0 <= len(first) - len(ids) // 2 < 200  # the line that the middle is in
    assert lm.evaluate(store, "valid", half="first").tokens == len(first)


def test_one_that_is_no_token_is_refused(run: Path, tmp_path: Path) -> None:
    for wrong in (-1, 10_000, "x", True, None):
        folder = tmp_path / str(wrong)
        folder.mkdir()
        for file in (run / "model").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        card = json.loads((folder / "config.json").read_text())
        card["extra"]["bos_id"] = wrong
        (folder / "config.json").write_text(json.dumps(card))
        with pytest.raises(InputError, match=r"bos_id.* is not in the vocabulary"):
            sglm.load(folder)
