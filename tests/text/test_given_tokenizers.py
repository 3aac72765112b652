"""Vocabularies from elsewhere: SentencePiece models, and ids. Hugging Face's: `tests/extras`."""

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from sglm.errors import InputError, SglmWarning
from sglm.text.encoder import Encoder
from sglm.text.lines import Piece
from sglm.text.sentencepiece_model import check_given_model, message_fields
from sglm.text.spm_tokenizer import SpmTokenizer
from sglm.text.tokenizer import IdsTokenizer, find_tokenizer, load_tokenizer
from tests.text.test_tokenizer import texts
from tests.tiny_models import spm_model

# What people choose, each on top of the package's defaults (nmt_nfkc, a space before the text,
# white space collapsed, no bytes).
MODELS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "vocab_size": 90},
    "unigram": {"model_type": "unigram", "vocab_size": 60},
    "word": {"model_type": "word", "vocab_size": 25},
    "char": {"model_type": "char"},
    "bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 330},
    "as it is": {
        "model_type": "bpe",
        "vocab_size": 90,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
    },
    "newlines": {
        "model_type": "bpe",
        "byte_fallback": True,
        "vocab_size": 330,
        "normalization_rule_name": "identity",
    },
    "spaces kept": {"model_type": "bpe", "vocab_size": 90, "remove_extra_whitespaces": False},
    "suffix": {"model_type": "bpe", "vocab_size": 90, "treat_whitespace_as_suffix": True},
    "symbols": {
        "model_type": "unigram",
        "vocab_size": 60,
        "user_defined_symbols": ["<x>", "the cat", "@@"],
    },
    "folded": {"model_type": "bpe", "vocab_size": 90, "normalization_rule_name": "nfkc_cf"},
    "no eos": {"model_type": "bpe", "vocab_size": 90, "eos_id": -1, "bos_id": -1},
}


@cache
def model(name: str) -> bytes:
    return spm_model(**{key: _hashable(value) for key, value in MODELS[name].items()})


def _hashable(value: Any) -> Any:
    return ",".join(value) if isinstance(value, list) else value


@cache
def tokenizer(name: str) -> SpmTokenizer:
    return SpmTokenizer(model(name))


@cache
def library(name: str) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model(name))


@pytest.mark.parametrize("name", MODELS)
@given(several=st.lists(texts, max_size=3))
@settings(deadline=None, max_examples=25)
def test_ids_are_those_of_sentencepiece(name: str, several: list[str]) -> None:
    expected = [library(name).encode(text) for text in several]
    assert tokenizer(name).encode_batch(several) == expected
    assert [tokenizer(name).encode(text) for text in several] == expected
    for text, ids in zip(several, expected, strict=True):
        offsets = tokenizer(name).offsets(text, ids)
        assert len(offsets) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
        assert offsets == sorted(offsets)


def test_offsets_are_those_of_the_text_before_normalisation() -> None:
    text = "The  ①ﬁ"
    plain = tokenizer("char")
    offsets = plain.offsets(text, plain.encode(text))
    found = [text[start:end] for start, end in offsets]
    assert found[:5] == ["", "T", "h", "e", "  "]
    assert found[-2:] == ["ﬁ", "ﬁ"], "pieces of one character share its offsets"
    assert "".join(text[start:end] for start, end in dict.fromkeys(offsets)) == text
    with_bytes = tokenizer("bytes")
    offsets = with_bytes.offsets("a 🙃", with_bytes.encode("a 🙃"))
    assert offsets[-4:] == [(2, 3)] * 4, "bytes inside one character share its offsets"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "newlines"])
def test_a_line_ends_in_eos_where_newlines_have_no_token(name: str) -> None:
    mine, encode = tokenizer(name), library(name).encode
    eos = mine.eos_id
    assert mine.eos_ends_lines
    lines = Piece("the cat\n\na dog\r\nsat", False)
    expected = [*encode("the cat"), eos, eos, *encode("a dog"), eos, *encode("sat"), eos]
    assert mine.encode_piece(lines) == expected
    assert mine.encode_piece(Piece("the cat", False, unfinished=True)) == encode("the cat")
    assert mine.encode_piece(Piece("the\ncat", True)) == [*encode("the\ncat"), eos]
    assert mine.line_end == [eos]
    plain = MODELS[name].get("normalization_rule_name") != "nfkc_cf"
    if name not in ("word", "suffix") and plain:
        assert mine.decode(mine.encode_piece(Piece("the cat\nsat\n", False))) == "the cat\nsat\n"


def test_newlines_that_have_a_token_are_text() -> None:
    mine, encode = tokenizer("newlines"), library("newlines").encode
    assert not mine.eos_ends_lines
    lines = Piece("the cat\n\nsat\n", False)
    assert mine.encode_piece(lines) == [*encode("the cat\n"), *encode("\n"), *encode("sat\n")]
    document = Piece("the cat\n\nsat\n", True)
    assert mine.encode_piece(document) == [*encode("the cat\n\nsat\n"), mine.eos_id]
    assert mine.decode([*encode("the cat\nsat"), mine.eos_id]) == "the cat\nsat"


@pytest.mark.parametrize("name", ["unigram", "newlines"])
@given(parts=st.lists(texts, min_size=1, max_size=4), document=st.booleans())
@settings(deadline=None, max_examples=25)
def test_however_a_text_comes_it_is_encoded_as_one(
    name: str, parts: list[str], document: bool
) -> None:
    """As in `test_encoder.py`, but lines are joined here as `regroup` joins them."""
    parts = [part if document else part.replace("\n", " ") for part in parts]
    encoder = Encoder(tokenizer(name))
    pieces = [Piece(part, document, unfinished=True) for part in parts[:-1]]
    last = Piece(parts[-1] + ("" if document else "\nthe cat\n"), document)
    found = [token for piece in [*pieces, last] for token in encoder.encode(piece).ids]
    assert found == tokenizer(name).encode_piece(Piece("".join(parts[:-1]) + last.text, document))


def test_the_end_of_text_is_the_models_own_or_given_or_added() -> None:
    assert (tokenizer("bpe").eos_id, tokenizer("bpe").adds_eos) == (2, False)
    added = tokenizer("no eos")
    own = library("no eos").vocab_size()
    assert (added.eos_id, added.vocab_size, added.adds_eos) == (own, own + 1, True)
    assert SpmTokenizer(model("bpe"), eos_id=7).eos_id == 7
    for mine in (tokenizer("bpe"), added):
        assert mine.token(mine.eos_id) == "<eos>"
        assert mine.eos_id not in mine.unwritten_ids
    assert tokenizer("bpe").unwritten_ids == [0, 1], "<unk> and <s> are never generated"
    with pytest.raises(InputError, match=rf"--eos-id 5000: .* 0 to {own - 1}"):
        SpmTokenizer(model("no eos"), eos_id=5000)
    prints = {added.fingerprint, SpmTokenizer(model("no eos"), eos_id=7).fingerprint}
    assert len(prints) == 2, "another end of text is another tokenizer"


@pytest.mark.parametrize("name", MODELS)
def test_words_are_marked_or_not(name: str) -> None:
    mine = tokenizer(name)
    # A word that does not end at its last token, a token of two words, an unknown one of many.
    assert mine.marks_words == (name not in ("suffix", "symbols", "word"))
    if mine.marks_words:
        ids = mine.encode("the cat sat")
        words = "".join(" " * mine.begins_word(i) + mine.token(i).strip("▁") for i in ids)
        assert words.split() == ["the", "cat", "sat"]


def test_a_word_after_another_has_the_ids_that_it_has_in_a_text() -> None:
    for name in MODELS:
        mine = tokenizer(name)
        first = mine.encode_word("the", in_text=False)
        both = first + mine.encode_word("cat", in_text=True)
        if name not in ("symbols", "suffix"):
            assert both == mine.encode("the cat"), name


@pytest.mark.parametrize("name", ["unigram", "newlines", "no eos"])
def test_a_saved_model_comes_back_and_is_the_librarys_own_file(name: str, tmp_path: Path) -> None:
    tokenizer(name).save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == tokenizer(name).fingerprint
    assert (loaded.eos_id, loaded.vocab_size) == (
        tokenizer(name).eos_id,
        tokenizer(name).vocab_size,
    )
    assert find_tokenizer(tmp_path).fingerprint == loaded.fingerprint
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sentencepiece.model"))
    assert theirs.encode("the cat") == loaded.encode("the cat")
    card = json.loads((tmp_path / "tokenizer.json").read_text())
    for change in ({"eos_id": 1}, {"eos_id": 10**6}, {"vocab_size": None}, {"eos_id": "2"}):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**card, **change}))
        with pytest.raises(InputError, match=r"damaged|not those"):
            load_tokenizer(tmp_path)


def charsmap() -> bytes:
    [normalizer] = [m for field, m in message_fields(model("bpe")) if field == 3]
    assert isinstance(normalizer, bytes)
    [table] = [table for key, table in message_fields(normalizer) if key == 2]
    assert isinstance(table, bytes)
    return table


def with_charsmap(table: bytes) -> bytes:
    """The model and one more normaliser, of which protobuf takes the last."""
    return model("bpe") + field(3, field(2, table))


def field(number: int, content: bytes) -> bytes:
    length, size = b"", len(content)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


def patched(table: bytes, **units: int) -> bytes:
    """With other units (`darts.h` of darts-clone): of the root, of its value, and of the letter "a"
    that may follow."""
    root = struct.unpack("<I", table[4:8])[0]
    children = (root >> 10) << ((root & 0x200) >> 6)
    places = {"root": 0, "value": children, "a": children ^ ord("a")}
    raw = bytearray(table)
    assert raw[4 + 4 * places["a"]] == ord("a")
    if "value" in units:
        units["root"] = root | 0x100  # it has a value
    for name, unit in units.items():
        raw[4 + 4 * places[name] : 8 + 4 * places[name]] = struct.pack("<I", unit)
    return bytes(raw)


def test_what_would_lead_sentencepiece_out_of_bounds_is_refused_before() -> None:
    for name in MODELS:
        check_given_model(model(name))
    table = charsmap()
    size = struct.unpack("<I", table[:4])[0]
    check_given_model(with_charsmap(table))
    check_given_model(with_charsmap(patched(table, value=1 << 31)))
    middle = next(i for i in range(1, size) if table[3 + size + i] and table[4 + size + i])
    attacks = {
        "out of bounds": [
            patched(table, root=(1 << 21) - 1 << 10 | 0x200),
            patched(table, value=len(table) | 1 << 31),
            patched(table, value=middle | 1 << 31),
        ],
        # The children of "a" are those of the root: "aaa…" goes on without end.
        "over 32 bytes": [patched(table, a=ord("a") << 10 | ord("a"))],
        "cut off": [table[:3], table[:100], table[:-1] + b"x", struct.pack("<I", size + 1) + table],
        "can't decode": [table[:-2] + b"\xed\0"],
    }
    for message, tables in attacks.items():
        for attack in tables:
            with pytest.raises(ValueError, match=message):
                check_given_model(with_charsmap(attack))
    for piece, message in {
        field(1, b"x" * 5000): "5000 bytes",
        field(1, b"a\0"): "NUL",
        field(1, b"<0x41>") + b"\x18\x06": "some of the 256 bytes",
    }.items():
        with pytest.raises(ValueError, match=message):
            check_given_model(model("bpe") + field(1, piece))
    for damaged in (b"", model("bpe")[:5000], b"{}" * 50):
        with pytest.raises((ValueError, RuntimeError)):
            SpmTokenizer(damaged)


def test_ids_are_read_as_they_are() -> None:
    ids = IdsTokenizer(50, eos_id=0)
    assert ids.encode(" 5  7 9\t11\r") == [5, 7, 9, 11]
    assert ids.encode("5 7\n\n007") == [5, 7, 0, 0, 7]
    assert ids.encode_piece(Piece("5 7\n\n9", False)) == [5, 7, 0, 0, 9, 0]
    assert ids.decode([5, 7, 0, 9]) == "5 7\n9"
    assert ids.offsets("5  12\n7", ids.encode("5  12\n7")) == [(0, 1), (3, 5), (5, 6), (6, 7)]
    assert (ids.vocab_size, ids.eos_id, ids.unk_id, ids.token(12)) == (50, 0, None, "12")


@given(st.lists(st.lists(st.integers(1, 49), max_size=5), max_size=5))
def test_ids_survive_the_round_trip(lines: list[list[int]]) -> None:
    ids = IdsTokenizer(50, eos_id=0)
    text = "\n".join(" ".join(map(str, line)) for line in lines)
    encoded = ids.encode(text)
    assert ids.decode(encoded) == text
    safe = ids.safe_prefix(text)
    assert ids.encode(text[:safe]) + ids.encode(text[safe:]) == encoded


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        *[
            (word, "is not an integer")
            for word in ("x", "1.5", "+5", "1_0", "٣", "5,", "<eos>", "-")
        ],
        *[("-3", "the id -3 is negative"), ("50", "the id 50 is not in the vocabulary, 0 to 49")],
        *[("9" * 5000, "9999 is not in the vocabulary"), ("-" + "9" * 5000, "is negative")],
    ],
)
def test_what_is_no_id_is_refused(text: str, problem: str) -> None:
    for ids in (IdsTokenizer(50, eos_id=0), IdsTokenizer(50, eos_id=None)):
        with pytest.raises(InputError) as caught:
            ids.encode(f"5 {text} 7")
        assert problem in str(caught.value)
        assert len(str(caught.value)) < 200


def test_an_added_end_is_no_id_of_the_text(tmp_path: Path) -> None:
    ids = IdsTokenizer(50, eos_id=None)
    assert (ids.vocab_size, ids.eos_id, ids.adds_eos) == (51, 50, True)
    ids.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint == ids.fingerprint != IdsTokenizer(51, eos_id=50).fingerprint
    for each in (ids, loaded):
        assert each.encode("49\n") == [49, 50]
        with pytest.raises(InputError, match="the id 50 is not in the vocabulary, 0 to 49"):
            each.encode("50")


@pytest.mark.parametrize(
    ("text", "warns"),
    [("5 0\n", True), ("5 00 \r\n7\n", True), ("5 0", True), ("0 5\n50\n10 0 1\n\n", False)],
)
def test_lines_that_end_in_their_end_already_are_noticed_once(
    text: str, warns: bool, recwarn: pytest.WarningsRecorder
) -> None:
    ids = IdsTokenizer(60, eos_id=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", warned := _Recorder())
        for _ in range(3):
            ids.encode_piece(Piece(text, False))
    assert warned.categories == [SglmWarning] * warns


class _Recorder:
    def __init__(self) -> None:
        self.categories: list[type[Warning]] = []

    def __call__(self, message: str, category: type[Warning], stacklevel: int) -> None:
        assert "twice" in message
        self.categories.append(category)
