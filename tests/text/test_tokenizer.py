"""What every tokenizer promises: the round trip, safe prefixes, the stream rule, its folder."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.text import sentencepiece_tokenizer
from sglm.text.lines import Piece
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece, sample_segments
from sglm.text.tokenizer import (
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from tests.conftest import make_text

KINDS = ["sentencepiece", "word", "char", "byte"]
# What tokenizers tend to drop, rewrite or take for something else.
AWKWARD = [
    *["\0", "\x01", "\x7f", "\x85", "\u2028", "\u3000", "\ufeff", "\t", "\r\n", "\n", " ", "  "],
    *["\u2581", "\u2585", "<eos>", "<unk>", "<0x41>", "<sglm:eos>", "<sglm:unk>", "</s>"],
    *["e\u0301", "é", "ﬁ", "😀", "\U0010ffff", "\u200d", "İ", "中文", "the", " cat", "sees ."],
    *[" " * 70, "x" * 300, "x" * 256],
]
texts = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=8), max_size=10).map("".join)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte"])
@given(text=texts)
@settings(deadline=None)
def test_any_text_survives_the_round_trip(
    tokenizers: dict[str, Tokenizer], kind: str, text: str
) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.unk_id is None


@given(text=texts)
@settings(deadline=None)
def test_characters_survive_where_they_are_in_the_vocabulary(text: str) -> None:
    ids = CharTokenizer(sorted(set(text))).encode(text)
    assert CharTokenizer(sorted(set(text))).decode(ids) == text
    assert not {0, 1} & set(ids)
    half = set(text[::2])
    expected = "".join(c if c in half else "\ufffd" for c in text)
    tokenizer = CharTokenizer(sorted(half))
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, continuation=texts)
@settings(deadline=None)
def test_a_safe_prefix_keeps_its_ids(
    tokenizers: dict[str, Tokenizer], kind: str, text: str, continuation: str
) -> None:
    tokenizer = tokenizers[kind]
    safe = tokenizer.safe_prefix(text)
    assert 0 <= safe <= len(text)
    assert tokenizer.encode(text + continuation) == tokenizer.encode(
        text[:safe]
    ) + tokenizer.encode(text[safe:] + continuation)


def test_all_but_the_last_word_is_a_safe_prefix(tokenizers: dict[str, Tokenizer]) -> None:
    text = "the cat sees"
    safe = {kind: tokenizers[kind].safe_prefix(text) for kind in KINDS}
    assert safe == {"sentencepiece": 7, "word": 8, "char": 12, "byte": 12}
    assert tokenizers["sentencepiece"].safe_prefix("the cat\n") == 8
    assert tokenizers["word"].safe_prefix("the cat ") == 8
    assert tokenizers["word"].safe_prefix("the\u3000cat") == 4


@pytest.mark.parametrize("kind", ["sentencepiece", "char", "byte"])
def test_literal_names_of_symbols_are_plain_text(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("<eos> <unk>")
    assert tokenizer.eos_id not in ids
    assert tokenizer.unk_id is None or tokenizer.unk_id not in ids
    assert tokenizer.decode(ids) == "<eos> <unk>"


def test_words_follow_the_penn_treebank_convention() -> None:
    tokenizer = WordTokenizer(["the", "cat", "sat"])
    assert (tokenizer.eos_id, tokenizer.unk_id, tokenizer.vocab_size) == (0, 1, 5)
    assert tokenizer.encode(" the cat \n\nthe <unk> dog\tsat") == [2, 3, 0, 0, 2, 1, 1, 4]
    assert tokenizer.decode([2, 3, 0, 0, 2, 1]) == "the cat\n\nthe <unk>"
    assert tokenizer.encode("cat <eos> sat") == [3, 0, 4]
    assert tokenizer.token(0) == "<eos>"
    assert tokenizer.token(1) == "<unk>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat\n", [2, 3, 0]),
        ("the cat", [2, 3, 0]),
        ("\n", [0]),
        ("", [0]),
        ("the\ncat\n", [2, 0, 3, 0]),
        ("the\n\ncat", [2, 0, 0, 3, 0]),
    ],
)
@pytest.mark.parametrize("document", [False, True])
def test_every_line_of_words_ends_in_exactly_one_eos(
    text: str, expected: list[int], document: bool
) -> None:
    assert WordTokenizer(["the", "cat"]).encode_piece(Piece(text, document)) == expected


@pytest.mark.parametrize("kind", ["sentencepiece", "char", "byte"])
def test_documents_end_in_eos_and_lines_do_not(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode("the cat\n")
    assert tokenizer.encode_piece(Piece("the cat\n", False)) == ids
    assert tokenizer.encode_piece(Piece("the cat\n", True)) == [*ids, tokenizer.eos_id]
    assert tokenizer.encode_piece(Piece("the cat\n", True, unfinished=True)) == ids
    assert tokenizer.decode([*ids, tokenizer.eos_id]) == "the cat\n"


def test_an_unfinished_line_of_words_has_no_eos_yet() -> None:
    assert WordTokenizer(["the"]).encode_piece(Piece("the", False, unfinished=True)) == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_comes_back_the_same(
    tokenizers: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    text = make_text(5) + "naïve \0 \u2028 words"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode_batch([text, ""]) == [tokenizer.encode(text), []]
    names = [loaded.token(i) for i in range(loaded.vocab_size)]
    assert all(names)
    assert names.count("<eos>") == 1


@pytest.mark.parametrize("kind", ["sentencepiece", "word", "char"])
def test_a_changed_vocabulary_is_noticed(
    tokenizers: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizers[kind].save(tmp_path)
    path = tmp_path / str(tokenizers[kind].content_file)
    path.write_bytes(path.read_bytes().replace(b"e", b"o"))
    with pytest.raises(InputError, match=r"damaged|not those"):
        load_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="damaged or incomplete"):
        load_tokenizer(tmp_path)


def test_a_folder_without_tokenizer_or_from_the_future_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    ByteTokenizer().save(tmp_path)
    facts = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**facts, "format_version": 99}))
    with pytest.raises(InputError, match="99"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        load_tokenizer(tmp_path)


def test_fingerprints_differ_by_kind_and_vocabulary() -> None:
    made = [ByteTokenizer(), CharTokenizer("ab"), CharTokenizer("abc"), WordTokenizer(["a", "b"])]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte"])
def test_half_a_surrogate_pair_is_a_clear_error(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    with pytest.raises(InputError, match=r"\\ud83d"):
        tokenizers[kind].encode("a \ud83d")


def test_generated_bytes_that_are_no_text_become_replacement_characters(
    tokenizers: dict[str, Tokenizer],
) -> None:
    assert ByteTokenizer().decode([0xE2, 0x82]) == "\ufffd"


def test_clearing_the_cache_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = make_text(200).split("\n")
    text = make_text(50, seed=1)
    expected = learn_sentencepiece(segments, None).encode(text)
    monkeypatch.setattr(sentencepiece_tokenizer, "CACHED_CHUNKS", 3)
    assert learn_sentencepiece(segments, None).encode(text) == expected


def test_sentencepiece_has_the_asked_size_or_names_the_largest() -> None:
    segments = make_text(300).split("\n")
    with pytest.raises(InputError, match="largest possible is") as caught:
        learn_sentencepiece(segments, 5000)
    largest = int(str(caught.value).split()[-1])
    for size in (260, 261, 280, largest):
        assert learn_sentencepiece(segments, size).vocab_size == size
    with pytest.raises(InputError, match="at least 260"):
        learn_sentencepiece(segments, 259)


def test_the_spelling_of_symbols_is_learned_like_any_other() -> None:
    tokenizer = learn_sentencepiece(["the <unk> and the <eos> of <unk>"] * 100, None)
    # "<", the letters, ">": SentencePiece does not mix scripts in a piece.
    assert len(tokenizer.encode(" <unk>")) == len(tokenizer.encode(" <eos>")) == 3


@pytest.mark.parametrize("segments", [[], ["\t", "\0", "\u2585"]])
def test_sentencepiece_needs_something_to_learn_from(segments: list[str]) -> None:
    with pytest.raises(InputError, match="holds no words"):
        learn_sentencepiece(segments, None)


def test_the_sample_is_bounded_even_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentencepiece_tokenizer, "SAMPLE_BYTES", 10_000)
    lines = [f"line {i:06d}\n" for i in range(20_000)]
    total = sum(map(len, lines))
    sample = sample_segments(iter(lines), total, seed=0)
    # A draw of 833 of 20,000 lines: ±4 standard deviations of its size are ±113 lines.
    assert abs(len(sample) - 833) < 113
    quarters = [0, 0, 0, 0]
    for line in sample:
        quarters[int(line.split()[1]) // 5000] += 1
    assert min(quarters) > 150  # 208 expected, standard deviation 14
    assert sample == sample_segments(iter(lines), total, seed=0)
    assert sample != sample_segments(iter(lines), total, seed=1)
    assert sample_segments(["a b\nc\n"], 6, seed=0) == ["a b", "c"]


def test_long_lines_are_cut_for_learning_and_nothing_is_lost() -> None:
    words = " ".join(f"word{i}" for i in range(2000))
    segments = sample_segments([words], len(words), seed=0)
    assert "".join(segments) == words
    assert max(map(len, segments)) <= sentencepiece_tokenizer.SEGMENT_CHARACTERS
    assert all(segment.startswith(" word") for segment in segments[1:])
    assert "".join(sample_segments(["x" * 2500], 2500, seed=0)) == "x" * 2500
