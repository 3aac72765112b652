"""A store is complete or refused; damage is named, with the cure."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sglm.errors import InputError
from sglm.text.store import SplitCounts, TokenStore, id_type_name
from sglm.text.store_writer import SplitWriter, write_meta
from sglm.text.tokenizer import ByteTokenizer, WordTokenizer


@pytest.fixture
def store(word_store: TokenStore, tmp_path: Path) -> Path:
    """A store's folder that may be damaged."""
    return Path(shutil.copytree(word_store.folder, tmp_path / "store"))


def change_meta(store: Path, change: Callable[[dict[str, object]], object]) -> None:
    meta = json.loads((store / "meta.json").read_text())
    change(meta)
    (store / "meta.json").write_text(json.dumps(meta))


def test_ids_are_little_endian_and_nothing_else(store: Path) -> None:
    opened = TokenStore.open(store)
    for split in ("train", "valid", "test"):
        ids = opened.ids(split)
        counts = opened.counts(split)
        assert isinstance(ids, np.memmap)
        assert not ids.flags.writeable
        assert ids.dtype == np.dtype("<u2")
        assert len(ids) == counts.tokens
        raw = (store / f"{split}.bin").read_bytes()
        pairs = zip(raw[::2], raw[1::2], strict=True)
        assert [low + 256 * high for low, high in pairs] == ids.tolist()


def test_meta_describes_the_store(store: Path) -> None:
    opened = TokenStore.open(store)
    meta = opened.meta
    assert meta["format_version"] == 1
    assert meta["dtype"] == "uint16"
    assert meta["tokenizer"] == {
        "kind": "word",
        "fingerprint": opened.tokenizer().fingerprint,
        "vocab_size": opened.tokenizer().vocab_size,
    }
    assert opened.splits == ("train", "valid", "test")
    train = meta["splits"]["train"]
    assert SplitCounts(*(train[name] for name in SplitCounts._fields)) == opened.counts("train")


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = WordTokenizer([f"w{i}" for i in range(65_534)])
    assert id_type_name(WordTokenizer([f"w{i}" for i in range(65_533)])) == "uint16"
    assert id_type_name(tokenizer) == "uint32"
    with SplitWriter(tmp_path / "train.bin", tokenizer=tokenizer) as writer:
        writer.add([65_535, 1, 1], words=3, text_bytes=12)
        facts = writer.finish()
    tokenizer.save(tmp_path)
    write_meta(tmp_path, tokenizer, {"train": facts})
    opened = TokenStore.open(tmp_path)
    assert opened.ids("train").tolist() == [65_535, 1, 1]
    assert opened.counts("train") == SplitCounts(tokens=3, words=3, bytes=12, unknown=2)


def test_the_fingerprint_follows_ids_and_tokenizer(store: Path) -> None:
    before = TokenStore.open(store).fingerprint
    assert TokenStore.open(store).fingerprint == before
    swap_ids(store)
    sha256 = hashlib.sha256((store / "valid.bin").read_bytes()).hexdigest()
    change_meta(store, lambda meta: meta["splits"]["valid"].update(sha256=sha256))  # type: ignore[index]
    assert TokenStore.open(store).fingerprint != before


def test_a_file_that_is_written_to_after_the_store_was_opened_is_refused(store: Path) -> None:
    opened, path = TokenStore.open(store), store / "valid.bin"
    content = path.read_bytes()
    with path.open("r+b") as file:  # in place, where it is mapped
        file.write(b"\xff\xff")
    for _ in range(2):
        with pytest.raises(InputError, match=r"valid\.bin: has changed since the store was opened"):
            opened.ids("valid")
    with path.open("r+b") as file:
        file.write(content[:2])
    assert opened.ids("valid").tobytes() == content


def test_what_is_read_stays_when_the_store_is_touched_moved_or_made_again(
    store: Path, tmp_path: Path
) -> None:
    opened, path = TokenStore.open(store), store / "valid.bin"
    content = {split: opened.ids(split).tobytes() for split in ("train", "valid")}
    os.utime(path, ns=(1, 1))
    assert opened.ids("valid").tobytes() == content["valid"]
    again = store / "again.bin"
    again.write_bytes(b"\xff" * len(content["valid"]))
    again.replace(path)
    assert opened.ids("valid").tobytes() == content["valid"]  # of the file that was checked
    store.rename(tmp_path / "elsewhere")
    for split in ("train", "valid"):
        assert opened.ids(split).tobytes() == content[split]
    with pytest.raises(InputError, match=r"does not match its checksum|holds the id"):
        TokenStore.open(tmp_path / "elsewhere")


def test_a_split_that_is_not_there_names_the_cure(store: Path) -> None:
    (store / "test.bin").unlink()
    change_meta(store, lambda meta: meta["splits"].pop("test"))  # type: ignore[attr-defined]
    opened = TokenStore.open(store)
    assert opened.splits == ("train", "valid")
    for ask in (opened.ids, opened.counts):
        with pytest.raises(InputError, match=r"no split 'test', only train, valid; .* --test"):
            ask("test")
        with pytest.raises(InputError, match=r"no split 'dev', only train, valid$"):
            ask("dev")


def cut_off(store: Path) -> None:
    path = store / "valid.bin"
    path.write_bytes(path.read_bytes()[:-2])


def swap_ids(store: Path) -> None:
    """Other ids, all of them known."""
    path = store / "valid.bin"
    np.fromfile(path, "<u2")[::-1].tofile(path)


def wrong_ids(store: Path) -> None:
    path = store / "train.bin"
    path.write_bytes(b"\xff\xff" + path.read_bytes()[2:])


def other_tokenizer(store: Path) -> None:
    (store / "vocab.json").unlink()
    ByteTokenizer().save(store)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no meta": (lambda store: (store / "meta.json").unlink(), "not a token store"),
    "no JSON": (lambda store: (store / "meta.json").write_text("{"), "damaged"),
    "other JSON": (lambda store: (store / "meta.json").write_text('{"a": 1}'), "damaged"),
    "no counts": (
        lambda store: change_meta(store, lambda m: m.update(splits={"train": {}})),
        "dam",
    ),
    "odd type": (lambda store: change_meta(store, lambda m: m.update(dtype="int8")), "damaged"),
    "future": (lambda store: change_meta(store, lambda m: m.update(format_version=2)), "format 2"),
    "cut off": (cut_off, r"valid\.bin holds \d+ bytes, not \d+; .* --force"),
    "no ids": (lambda store: (store / "test.bin").unlink(), r"test\.bin holds 0 bytes"),
    "other ids": (swap_ids, r"valid\.bin does not match its checksum in meta\.json"),
    "wrong ids": (wrong_ids, r"train\.bin holds the id 65535, but .* only \d+"),
    "other tokenizer": (other_tokenizer, "another tokenizer"),
    "no tokenizer": (lambda store: (store / "tokenizer.json").unlink(), "no tokenizer"),
    "no vocabulary": (lambda store: (store / "vocab.json").unlink(), "damaged or incomplete"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(store: Path, damage: str) -> None:
    do, message = DAMAGES[damage]
    do(store)
    with pytest.raises(InputError, match=message) as caught:
        TokenStore.open(store)
    assert str(store) in str(caught.value)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; make a store with sglm prep"):
        TokenStore.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        TokenStore.open(tmp_path / "file")


def test_the_first_id_beyond_the_vocabulary_is_refused(store: Path) -> None:
    """With the checksum that goes with it, as another program might write a store."""
    size, path = TokenStore.open(store).tokenizer().vocab_size, store / "valid.bin"

    def end_in(token_id: int) -> None:
        np.append(np.fromfile(path, "<u2")[:-1], np.uint16(token_id)).tofile(path)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        change_meta(store, lambda meta: meta["splits"]["valid"].update(sha256=sha256))  # type: ignore[index]

    end_in(size - 1)
    assert TokenStore.open(store).ids("valid")[-1] == size - 1
    end_in(size)
    with pytest.raises(InputError, match=f"holds the id {size}, but .* only {size} "):
        TokenStore.open(store)
