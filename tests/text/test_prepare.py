"""Preparation as a whole: counts, nothing learned from held-out text, nothing lost, determinism."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import Result

from sglm.errors import InputError, SglmError
from sglm.text import lines
from sglm.text import prepare as prepare_module
from sglm.text import regroup as regroup_module
from sglm.text.lines import Piece
from sglm.text.prepare import StoreSettings, learn_words, prepare
from sglm.text.regroup import regroup
from sglm.text.sentencepiece_tokenizer import SentencePieceTokenizer
from sglm.text.store import SplitCounts, TokenStore
from sglm.text.tokenizer import CharTokenizer, Tokenizer, WordTokenizer
from tests.conftest import make_text
from tests.text.conftest import ODD_TEXT

KINDS = ["sentencepiece", "word", "char", "byte"]
SPLITS = ("train", "valid", "test")


def write(path: Path, text: str) -> str:
    path.write_bytes(text.encode())
    return str(path)


def decoded(store: TokenStore, split: str) -> str:
    return store.tokenizer().decode(store.ids(split).tolist())


def test_words_are_counted_as_the_penn_treebank_has_them(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", " b a \n\n c a <unk>\n b a b")
    valid = write(tmp_path / "valid.txt", "a é b\n")
    store = prepare([train], tmp_path / "s", StoreSettings(tokenizer="word", valid=valid, test=0.0))
    assert store.counts("train") == SplitCounts(tokens=12, words=8, bytes=24, unknown=1)
    assert store.counts("valid") == SplitCounts(tokens=4, words=3, bytes=7, unknown=1)
    assert store.splits == ("train", "valid")
    # <eos>, <unk>, then by frequency, then alphabetically: a b (3 each) c.
    assert [store.tokenizer().token(i) for i in range(5)] == ["<eos>", "<unk>", "a", "b", "c"]
    assert store.ids("train").tolist() == [3, 2, 0, 0, 4, 2, 1, 0, 3, 2, 3, 0]


def test_words_beyond_the_vocabulary_are_unknown(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "b a c\na b\n")
    store = prepare(
        [train], tmp_path / "s", StoreSettings(tokenizer="word", vocab_size=4, valid=0.0, test=0.0)
    )
    assert store.tokenizer().vocab_size == 4
    assert store.ids("train").tolist() == [3, 2, 1, 0, 2, 3, 0]
    with pytest.raises(InputError, match="largest possible is 5"):
        prepare(
            [train],
            tmp_path / "t",
            StoreSettings(tokenizer="word", vocab_size=6, valid=0.0, test=0.0),
        )


@pytest.mark.parametrize("kind", ["sentencepiece", "char", "byte"])
def test_the_splits_hold_the_whole_text_and_nothing_else(tmp_path: Path, kind: str) -> None:
    text = make_text(200) + ODD_TEXT * 20
    numbered = "".join(f"{i} {line}\n" for i, line in enumerate(text.split("\n")))
    store = prepare(
        [write(tmp_path / "text.txt", numbered)], tmp_path / "s", StoreSettings(tokenizer=kind)
    )
    all_of_it = "".join(decoded(store, split) for split in store.splits)
    assert sorted(all_of_it.split("\n")) == sorted(numbered.split("\n"))
    for split in store.splits:
        text, counts = decoded(store, split), store.counts(split)
        assert counts.words == len(text.split())
        assert counts.bytes == len(text.encode())
        assert counts.tokens == len(store.ids(split))
        # Lines keep their order, too.
        numbers = [int(line.split()[0]) for line in text.split("\n") if line]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_documents_end_in_eos(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"a text {i % 7}"}) + "\n" for i in range(100)))
    store = prepare([str(path)], tmp_path / "s", StoreSettings(tokenizer=kind, valid=0.1, test=0.0))
    eos = store.tokenizer().eos_id
    ends = [int((store.ids(split) == eos).sum()) for split in store.splits]
    assert sum(ends) == 100
    assert all(store.ids(split)[-1] == eos for split in store.splits)


@pytest.mark.parametrize("from_file", [False, True])
def test_held_out_text_never_reaches_a_vocabulary(tmp_path: Path, from_file: bool) -> None:
    # Every line has a character and a word of its own, often enough to be learned at once.
    own = [chr(0x4E00 + i) for i in range(300)]
    texts = [f"common words {c}x{c}x {c}x{c}x {c}x{c}x {c}{c}{c} {c}{c}{c}\n" for c in own]
    held_out: dict[str, float | str] = {"valid": 0.1, "test": 0.1}
    if from_file:
        held_out = {
            "valid": write(tmp_path / "valid.txt", "".join(texts[200:250])),
            "test": write(tmp_path / "test.txt", "".join(texts[250:])),
        }
        texts = texts[:200]
    source = write(tmp_path / "text.txt", "".join(texts))

    def made(kind: str, vocab_size: int | None = None) -> TokenStore:
        return prepare(
            [source],
            tmp_path / kind,
            StoreSettings(tokenizer=kind, vocab_size=vocab_size, **held_out),
        )  # type: ignore[arg-type]

    as_bytes = made("byte")
    splits = {split: set(decoded(as_bytes, split)) & set(own) for split in SPLITS}
    assert len(splits["valid"]) > 20
    assert len(splits["test"]) > 20
    assert len(splits["train"] | splits["valid"] | splits["test"]) == 300
    for kind, vocab_size in (("word", None), ("char", None), ("sentencepiece", 1000)):
        tokenizer = made(kind, vocab_size).tokenizer()
        learned = {c for i in range(tokenizer.vocab_size) for c in tokenizer.token(i)} & set(own)
        assert learned == splits["train"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_text_gives_the_same_store(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path / "text.txt", make_text(400))
    stores = [
        prepare([source], tmp_path / name, StoreSettings(tokenizer=kind)) for name in ("a", "b")
    ]
    other = prepare([source], tmp_path / "c", StoreSettings(tokenizer=kind, seed=1))
    assert stores[0].fingerprint == stores[1].fingerprint != other.fingerprint
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_several_sources_are_read_one_after_the_other(tmp_path: Path) -> None:
    first = write(tmp_path / "b.txt", "one\ntwo")
    second = write(tmp_path / "a.txt", "three\n")
    store = prepare(
        [first, second], tmp_path / "s", StoreSettings(tokenizer="word", valid=0.0, test=0.0)
    )
    assert decoded(store, "train") == "one\ntwo\nthree\n"


words = st.text(st.sampled_from("abé"), min_size=1, max_size=7)
spaces = st.sampled_from([" ", "   ", "\n", " \n\n"])
spaced = st.lists(st.tuples(spaces, words), max_size=12).map(lambda ws: "".join(map("".join, ws)))


@pytest.mark.parametrize("kind", KINDS)
@given(
    pieces=st.lists(st.tuples(spaced, st.sampled_from(["line", "rest", "document"])), max_size=9)
)
@settings(deadline=None)
def test_joining_and_cutting_pieces_changes_nothing(
    tokenizers: dict[str, Tokenizer], kind: str, pieces: list[tuple[str, str]]
) -> None:
    def piece(text: str, shape: str) -> Piece:
        if shape == "document":
            return Piece(text, True)
        line = text.replace("\n", " ")
        return Piece(line + "\n" if shape == "line" else line, False)

    tokenizer = tokenizers[kind]
    before = [piece(*arguments) for arguments in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regroup_module, "JOINED_CHARACTERS", 20)
        patch.setattr(regroup_module, "LONGEST_CHARACTERS", 12)
        after = list(regroup(before))
    assert "".join(p.text for p in after) == "".join(p.text for p in before)
    assert [i for p in after for i in tokenizer.encode_piece(p)] == [
        i for p in before for i in tokenizer.encode_piece(p)
    ]
    assert sum(len(p.text.split()) for p in after) == sum(len(p.text.split()) for p in before)


def test_enormous_records_are_cut_even_without_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regroup_module, "LONGEST_CHARACTERS", 10)
    for text in ("x" * 95, " " + "x" * 95, " " * 95, "\n" * 95):
        cut = list(regroup([Piece(text, True)]))
        assert "".join(piece.text for piece in cut) == text
        assert max(len(piece.text) for piece in cut) <= 10
        assert [piece.unfinished for piece in cut] == [True] * (len(cut) - 1) + [False]


@pytest.mark.parametrize("kind", KINDS)
def test_an_enormous_line_is_encoded_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    text = make_text(50).replace("\n", " ")
    source = write(tmp_path / "text.txt", text + "\nthe cat .\n")
    whole = prepare(
        [source], tmp_path / "whole", StoreSettings(tokenizer=kind, valid=0.0, test=0.0)
    )
    monkeypatch.setattr(lines, "READ_BYTES", 64)
    monkeypatch.setattr(prepare_module, "READ_BYTES", 64)
    cut = prepare([source], tmp_path / "cut", StoreSettings(tokenizer=kind, valid=0.0, test=0.0))
    assert cut.fingerprint == whole.fingerprint
    assert cut.counts("train") == whole.counts("train")


def test_counting_words_drops_only_rare_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MOST_WORD_TYPES", 100)
    rng = random.Random(0)
    texts = [
        " ".join(["often"] * 5 + ["also"] * 3 + [f"rare{rng.random()}" for _ in range(20)])
        for _ in range(200)
    ]
    tokenizer = learn_words(texts, None)
    assert tokenizer.vocab_size <= 102
    assert [tokenizer.token(i) for i in (2, 3)] == ["often", "also"]


def test_a_tokenizer_that_loses_text_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "text.txt", make_text(100))
    decode = SentencePieceTokenizer.decode
    monkeypatch.setattr(
        SentencePieceTokenizer, "decode", lambda self, ids: decode(self, ids).replace("e", "")
    )
    with pytest.raises(SglmError, match="does not give this text back"):
        prepare([source], tmp_path / "s", StoreSettings())
    assert not (tmp_path / "s").exists()


def test_unknown_characters_of_held_out_text_are_counted(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", "abc\n")
    valid = write(tmp_path / "valid.txt", "abxc\ny\n")
    store = prepare([train], tmp_path / "s", StoreSettings(tokenizer="char", valid=valid, test=0.0))
    assert isinstance(store.tokenizer(), CharTokenizer)
    assert store.counts("valid") == SplitCounts(tokens=7, words=2, bytes=7, unknown=2)


def test_progress_is_reported_for_every_pass(tmp_path: Path) -> None:
    source = write(tmp_path / "text.txt", make_text(500))
    size = len(make_text(500))
    calls: list[tuple[str, int, int | None]] = []
    prepare(
        [source],
        tmp_path / "s",
        StoreSettings(tokenizer="word"),
        on_progress=lambda *call: calls.append(call),
    )
    last = {doing: (done, total) for doing, done, total in calls}
    assert last == dict.fromkeys(
        ("reading train", "learning the vocabulary", "encoding"), (size, size)
    )


def test_the_summary_is_that_of_the_store(
    run_prep: Callable[..., Result], text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    result = run_prep(text_file, "--out", out, "--tokenizer", "word", "--vocab-size", 9, "--json")
    facts = json.loads(result.stdout)
    store = TokenStore.open(out)
    assert isinstance(store.tokenizer(), WordTokenizer)
    assert facts["tokenizer"]["vocab_size"] == store.tokenizer().vocab_size == 9
    assert facts["fingerprint"] == store.fingerprint
    for split in SPLITS:
        assert facts["splits"][split] == store.counts(split)._asdict()
