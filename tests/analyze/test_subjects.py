"""The models and the text of an analysis; what does not fit together is named."""

from pathlib import Path

import pytest

from sglm.analyze.subjects import check_length, find_subjects, store_of
from sglm.errors import InputError
from sglm.model.folder import save_model
from sglm.text.tokenizer import Tokenizer
from tests.tiny_models import make_network, make_store, make_tokenizer


def write_run(path: Path, tokenizer: Tokenizer | None = None, snapshots: int = 0) -> Path:
    tokenizer = tokenizer or make_tokenizer("word")
    folders = [path / "model", *(path / f"snapshots/cycle-{n:03d}" for n in range(snapshots))]
    for seed, folder in enumerate(folders):
        network = make_network(tokenizer.vocab_size, seed=seed)
        save_model(network, folder, tokenizer.fingerprint)
        tokenizer.save(folder)
    return path


def test_names_are_as_short_as_tells_runs_apart(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "a/run"), write_run(tmp_path / "b/run", snapshots=2)
    assert [each.name for each in find_subjects([one, two])] == ["a-run", "b-run"]
    names = [each.name for each in find_subjects([two], snapshots=True)]
    assert names == ["run@cycle-000", "run@cycle-001"]


def test_a_subject_changes_with_its_weights(tmp_path: Path) -> None:
    subject = find_subjects([write_run(tmp_path / "run")])[0]
    before = subject.fingerprint()
    network = subject.load()
    network.softmax_bias.data += 1
    save_model(network, subject.folder, make_tokenizer("word").fingerprint)
    assert subject.fingerprint() != before


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    words, characters = (
        write_run(tmp_path / "words"),
        write_run(tmp_path / "chars", make_tokenizer("char")),
    )
    with pytest.raises(InputError, match="chars has another tokenizer than words; analyse"):
        find_subjects([words, characters])
    with pytest.raises(InputError, match="was given twice"):
        find_subjects([words, tmp_path / "." / "words"])
    with pytest.raises(InputError, match="has no snapshots"):
        find_subjects([words], snapshots=True)
    with pytest.raises(InputError, match=r"no run or model at .*; known: chars, words"):
        find_subjects([tmp_path / "nothing"], snapshots=True)
    with pytest.raises(InputError, match="not only its model"):
        find_subjects([words])[0].config()
    with pytest.raises(InputError, match="give a run"):
        find_subjects([])
    for alone in (str(words), words):
        with pytest.raises(InputError, match="runs are given as a list"):
            find_subjects(alone)  # type: ignore[arg-type]


def test_the_text_is_the_tokenizers_and_long_enough(tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.txt"
    held_out.write_text("the cat sat\n", encoding="utf-8")
    store = make_store(tmp_path, "word", held_out)
    run = find_subjects([write_run(tmp_path / "run", store.tokenizer())])
    with pytest.raises(InputError, match="give --data"):
        store_of(run)  # it does not say what it was trained on
    assert store_of(run, store.folder).fingerprint == store.fingerprint
    tokens = len(store.ids("valid"))
    check_length(store, "valid", tokens=tokens, purpose="2 windows")
    with pytest.raises(InputError, match=f"has {tokens} tokens, and 2 windows take {tokens + 1}"):
        check_length(store, "valid", tokens=tokens + 1, purpose="2 windows")
    other = find_subjects([write_run(tmp_path / "other")])
    with pytest.raises(InputError, match=r"by another tokenizer .* prep --tokenizer-of RUN"):
        store_of(other, store.folder)
