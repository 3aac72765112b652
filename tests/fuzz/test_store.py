"""Token stores: what lies there is opened whole, with ids that the vocabulary has, or refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.errors import InputError
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import SPLITS, SplitCounts, TokenStore, is_store
from sglm.text.store_writer import SplitWriter, write_meta
from sglm.text.tokenizer import WordTokenizer
from tests.fuzz.examples import damage, examples, spoilt

StoreCopy = Callable[[], Path]


def check(folder: Path) -> None:
    """What holds for every store that opens."""
    store = TokenStore.open(folder)
    assert set(store.splits) <= set(SPLITS)
    assert len(store.fingerprint) == 64
    for split in store.splits:
        ids, counts = store.ids(split), store.counts(split)
        assert all(type(count) is int and count >= 0 for count in counts)
        assert len(ids) == counts.tokens
        assert int(ids.max()) < store.tokenizer().vocab_size


def open_or_refuse(folder: Path) -> bool:
    """Whether it opened."""
    is_store(folder)
    try:
        check(folder)
    except InputError as error:
        assert len(str(error)) < 1000
        return False
    return True


@given(data=st.data())
@examples(60)
def test_any_meta_is_read_or_refused(store_copy: StoreCopy, data: st.DataObject) -> None:
    folder = store_copy()
    damage(folder / "meta.json", data)
    open_or_refuse(folder)


@given(data=st.data())
@examples(40)
def test_any_accident_to_a_file_is_noticed(store_copy: StoreCopy, data: st.DataObject) -> None:
    folder = store_copy()
    name = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir())))
    before = (folder / name).read_bytes()
    after = data.draw(spoilt(before))
    (folder / name).write_bytes(after)
    opened = open_or_refuse(folder)
    if name.endswith(".bin"):
        assert opened == (after == before)


@given(
    ids=st.lists(st.sampled_from([0, 1, 2, 5, 6, 2**16 - 1, 2**31, 2**32 - 1]), min_size=1),
    id_type=st.sampled_from(["uint16", "uint32"]),
)
@examples(60)
def test_ids_outside_the_vocabulary_are_refused_when_a_store_is_opened(
    tmp_path: Path, ids: list[int], id_type: str
) -> None:
    """Also those that would be negative, had they a sign; with sums that are right."""
    tokenizer = WordTokenizer(["a", "b", "c", "d"])
    raw = np.array(ids).astype({"uint16": "<u2", "uint32": "<u4"}[id_type])
    raw.tofile(tmp_path / "train.bin")
    tokenizer.save(tmp_path)
    sha256 = hashlib.sha256(raw.tobytes()).hexdigest()
    facts = {**SplitCounts(len(ids), 1, 1, 0)._asdict(), "sha256": sha256}
    write_meta(tmp_path, tokenizer, {"train": facts})
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "dtype": id_type}))
    if int(raw.max()) < tokenizer.vocab_size:
        check(tmp_path)
    else:
        with pytest.raises(InputError, match=f"the id {raw.max()}, but the vocabulary has only 6"):
            TokenStore.open(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/secret", "train.bin/../../secret", "", "a\0b", "\ud800", "dev"]
)
def test_a_split_is_a_file_of_the_store_and_none_elsewhere(
    store_copy: StoreCopy, name: str
) -> None:
    folder = store_copy()
    raw = (folder / "valid.bin").read_bytes()
    (folder.parent / "secret.bin").write_bytes(raw)
    meta = json.loads((folder / "meta.json").read_text())
    meta["splits"][name] = meta["splits"]["valid"]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match=r"meta\.json is damaged \(splits\)"):
        TokenStore.open(folder)


def test_links_to_good_files_are_followed_and_links_to_devices_refused(
    store_copy: StoreCopy, tmp_path: Path
) -> None:
    folder = store_copy()
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    check(linked)
    store = TokenStore.open(linked)
    for path in sorted(linked.iterdir()):
        for target in ("/dev/zero", path.name):  # which goes around in a circle
            path.unlink()
            path.symlink_to(target)
            if path.suffix == ".lines":  # read only when it is asked for
                with pytest.raises(InputError, match="damaged"):
                    store.line_hashes(path.stem)
            else:
                assert not open_or_refuse(linked), path.name
        path.unlink()
        path.symlink_to(folder / path.name)
    check(linked)


def test_force_deletes_no_folder_that_has_the_name_of_a_file(
    store_copy: StoreCopy, text_file: Path
) -> None:
    folder = store_copy()
    (folder / "test.bin").unlink()
    (folder / "test.bin").mkdir()
    (folder / "test.bin" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds test\.bin besides the store"):
        prepare([str(text_file)], folder, StoreSettings(tokenizer="byte"), force=True)
    assert (folder / "test.bin" / "thesis.tex").exists()


def test_an_endless_file_of_ids_is_not_read_to_its_end(tmp_path: Path) -> None:
    tokenizer = WordTokenizer(["a"])
    with SplitWriter(tmp_path / "train.bin", tokenizer=tokenizer) as writer:
        writer.add([2, 2], words=2, text_bytes=3)
        facts: dict[str, Any] = writer.finish()
    tokenizer.save(tmp_path)
    write_meta(tmp_path, tokenizer, {"train": facts})
    check(tmp_path)
    with (tmp_path / "train.bin").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"train\.bin holds \d+ bytes, not 4"):
        TokenStore.open(tmp_path)
