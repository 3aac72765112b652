"""Tokenizer files: lists and SentencePiece models of any content, with fingerprints that fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.text.sentencepiece_model import check_own_model
from sglm.text.tokenizer import Tokenizer, load_tokenizer
from tests.fuzz.examples import ODD, TEXTS, damages, examples, spoilt
from tests.tiny_models import KINDS, make_tokenizer

ModelFolders = Callable[[str], Path]
Copies = Callable[[Path], Path]
PIECES = make_tokenizer("sentencepiece").content()


def check(tokenizer: Tokenizer, text: str = "the cat\n  sät\0 \u2581 🙂") -> None:
    """What holds for every tokenizer that loads."""
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in [*ids, tokenizer.eos_id])
    if tokenizer.lossless and tokenizer.unk_id not in ids:
        assert tokenizer.decode(ids) == text
    safe = tokenizer.safe_prefix(text)
    assert tokenizer.encode(text[:safe]) + tokenizer.encode(text[safe:]) == ids
    for token_id in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.token(token_id), str)
        tokenizer.decode([token_id])


def load_or_refuse(folder: Path) -> bool:
    try:
        tokenizer = load_tokenizer(folder)
    except InputError as error:
        assert len(str(error)) < 1000
        return False
    check(tokenizer)
    return True


def with_content(folder: Path, kind: str, file: str, raw: bytes, content: bytes) -> bool:
    """Puts in a file and the fingerprint of what is read from it; whether that loads."""
    (folder / file).write_bytes(raw)
    facts = json.loads((folder / "tokenizer.json").read_text())
    fingerprint = hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()
    facts |= {"kind": kind, "fingerprint": fingerprint}
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    return load_or_refuse(folder)


@given(data=st.data(), kind=st.sampled_from(KINDS))
@examples(60)
def test_any_accident_to_a_file_is_noticed(
    model_folders: ModelFolders, copies: Copies, data: st.DataObject, kind: str
) -> None:
    folder = copies(model_folders(kind))
    names = ("tokenizer.json", "vocab.json", "sentencepiece.model")
    name = data.draw(st.sampled_from([n for n in names if (folder / n).exists()]))
    before = (folder / name).read_bytes()
    after = data.draw(damages(before))
    (folder / name).write_bytes(after)
    if load_or_refuse(folder) and name != "tokenizer.json":
        # JSON may be laid out in several ways; its content is the same.
        assert name == "vocab.json"
        assert json.loads(after) == json.loads(before)


ENTRIES = st.lists(st.one_of(ODD, st.text(max_size=2), st.characters(), st.integers(), st.none()))


@given(kind=st.sampled_from(["word", "char"]), entries=st.one_of(ENTRIES, st.lists(TEXTS)))
@examples(100)
def test_any_list_is_a_vocabulary_or_refused(
    model_folders: ModelFolders, copies: Copies, kind: str, entries: list[Any]
) -> None:
    raw = json.dumps(entries).encode()
    try:
        content = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        content = raw
    with_content(copies(model_folders(kind)), kind, "vocab.json", raw, content)


HOSTILE: dict[str, tuple[str, Any]] = {
    "numbers": ("word", [1, 2]),
    "a table": ("word", {"a": 1}),
    "twice": ("word", ["a", "a"]),
    "empty": ("word", [""]),
    "a space": ("word", ["a b"]),
    "a nested list": ("char", [["a"]]),
    "two characters": ("char", ["ab"]),
    "half a character": ("char", ["\ud800"]),
    "a text": ("char", "abc"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_vocabulary_is_refused(
    model_folders: ModelFolders, copies: Copies, what: str
) -> None:
    kind, entries = HOSTILE[what]
    raw = json.dumps(entries).encode()
    content = json.dumps(entries, ensure_ascii=False, separators=(",", ":"))
    fingerprinted = content.encode("utf-8", "surrogatepass")
    assert not with_content(copies(model_folders(kind)), kind, "vocab.json", raw, fingerprinted)


@given(model=spoilt(PIECES))
@examples(60)
def test_any_sentencepiece_model_loads_whole_or_is_refused(
    model_folders: ModelFolders, copies: Copies, model: bytes
) -> None:
    folder = copies(model_folders("sentencepiece"))
    with_content(folder, "sentencepiece", "sentencepiece.model", model, model)


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf's wire format that holds bytes."""
    size, prefix = len(content), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    return bytes(prefix) + bytes([size]) + content


# Each would be read as part of the model: in this format, what comes later is merged into it.
ATTACKS = {
    # Leads SentencePiece out of bounds (google/sentencepiece issue 1269).
    "a table that rewrites": (field(3, field(2, b"\xff" * 64)), "rewrites text"),
    # Overflows its stack (issue 1263).
    "a piece of a megabyte": (field(1, field(1, b"a" * 2**20)), "a piece of 1048576 bytes"),
    "a NUL": (field(1, field(1, b"a\0")), "NUL"),
    "an empty piece": (field(1, b""), "a piece of 0 bytes"),
    "not UTF-8": (field(1, field(1, b"\xff")), "utf-8"),
    "a self-test": (field(4, field(1, b"a")), "field 4"),
    "a denormalizer": (field(5, b""), "field 5"),
    "a unigram model": (field(2, b"\x18\x01"), "not a byte pair encoding"),
    "a score that is no number": (field(1, field(1, b"zz") + b"\x15\0\0\xc0\x7f"), "field 2"),
    "a user's piece": (field(1, field(1, b"zz") + b"\x18\x04"), "of type 4, user-defined"),
    "a piece of an unknown type": (
        field(1, field(1, b"zz") + b"\x18\x07"),
        "of type 7, which SentencePiece does not have",
    ),
    "a second unknown": (field(1, field(1, b"zz") + b"\x18\x02"), "unknown"),
    "a 257th byte": (field(1, field(1, b"<0x100>") + b"\x18\x06"), "256 bytes"),
    "a group": (b"\x0b\x0c", "wire type 3"),
    "a length beyond the end": (b"\x0a\xff\xff\xff\xff\x0f", "cut off"),
    "a number without end": (b"\x08" + b"\xff" * 20, "64 bits"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_model_that_sentencepiece_should_not_see_is_refused_before(
    model_folders: ModelFolders, copies: Copies, what: str
) -> None:
    added, message = ATTACKS[what]
    check_own_model(PIECES)
    with pytest.raises(ValueError, match=message):
        check_own_model(PIECES + added)
    folder = copies(model_folders("sentencepiece"))
    model = PIECES + added
    assert not with_content(folder, "sentencepiece", "sentencepiece.model", model, model)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_what_never_ends_is_refused(model_folders: ModelFolders, copies: Copies, name: str) -> None:
    folder = copies(model_folders("word"))
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    assert not load_or_refuse(folder)
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    assert not load_or_refuse(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert not load_or_refuse(folder)


@given(kind=st.sampled_from(KINDS), text=TEXTS)
@examples(120)
def test_any_text_goes_through_every_tokenizer(kind: str, text: str) -> None:
    try:
        check(make_tokenizer(kind), text)
    except InputError as error:
        assert any("\ud800" <= character <= "\udfff" for character in text)
        assert "half a surrogate pair" in str(error)
