"""Checkpoints: what is saved is read back, and `latest` is always a complete one."""

import errno
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm.errors import InputError
from sglm.storage import checkpoint
from sglm.storage.checkpoint import (
    FORMAT_VERSION,
    load_checkpoint,
    put_damaged_aside,
    save_checkpoint,
)


def some_state(number: int = 0) -> dict[str, Any]:
    weight = torch.randn(2, 3)
    return {
        "model": {"weight": weight, "view": weight[0]},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "groups": [{"lr": 0.1}]},
        "none": None,
        "progress": {"step": number, "best": 1.5, "text": "tensor"},
        "rng": torch.get_rng_state(),
        "nested": [torch.ones(1), [torch.zeros(0, 4)]],
    }


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right) and left.dtype == right.dtype
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_round_trip_of_any_tree(tmp_path: Path) -> None:
    state = some_state()
    save_checkpoint(tmp_path, 7, state)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 7
    assert equal(state, loaded.state)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nothing") is None


def test_latest_is_the_newest_and_old_ones_are_removed(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, some_state(step))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.state["progress"]["step"] == 15
    assert names(tmp_path) == ["latest", "step-000000010", "step-000000015"]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_as_many_are_kept_as_was_asked_for(tmp_path: Path, keep: int) -> None:
    for step in range(1, 7):
        save_checkpoint(tmp_path, step, some_state(step), keep=keep)
    assert names(tmp_path) == ["latest", *(f"step-{step:09d}" for step in range(7 - keep, 7))]


def test_of_many_at_one_step_the_last_one_counts(tmp_path: Path) -> None:
    for number in range(13):
        save_checkpoint(tmp_path, 5, some_state(number))
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        assert loaded.state["progress"]["step"] == number
        assert len(names(tmp_path)) == min(3, number + 2)


def test_a_copy_that_lost_the_link_goes_on_from_the_newest(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, some_state(step))
    (tmp_path / "latest").unlink()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 10


def test_checkpoints_of_steps_that_a_run_went_back_from_are_removed(tmp_path: Path) -> None:
    for step in (100, 200):
        save_checkpoint(tmp_path, step, some_state(step))
    save_checkpoint(tmp_path, 150, some_state(150))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 150
    assert names(tmp_path) == ["latest", "step-000000100", "step-000000150"]


@pytest.mark.parametrize("failing", ["write_tensors", "sync"])
def test_a_write_that_fails_leaves_the_old_one_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    save_checkpoint(tmp_path, 5, some_state(5))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, failing, full)
        with pytest.raises(OSError, match="No space"):
            save_checkpoint(tmp_path, 10, some_state(10))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 5
    save_checkpoint(tmp_path, 10, some_state(10))  # and the leftovers are no obstacle
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 10
    assert not list(tmp_path.glob("*.partial"))


FILES = ["state.json", "state.safetensors", "SHA256SUMS"]


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    return {
        "empty": b"",
        "cut": content[:middle],
        "longer": content + b"x",
        "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "zeros": bytes(len(content)),
        "other": b"{}",
    }[how]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["empty", "cut", "longer", "a bit", "zeros", "other", "gone"])
def test_a_damaged_one_is_named_and_the_one_before_it_used(
    tmp_path: Path, file: str, how: str
) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, some_state(step))
    path = tmp_path / "latest" / file
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes(), how))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.state["progress"]["step"] == 5
    ((path, line),) = loaded.damaged.items()
    assert f"{path}: damaged checkpoint (" in line
    assert path.name == "step-000000010"
    assert "\n" not in line


def test_where_all_are_damaged_the_cure_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, some_state())
    (tmp_path / "latest" / "state.json").write_bytes(b"")
    with pytest.raises(InputError, match=r"step-000000005: damaged .* and none .* remove .*"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("step", [7, 10, 12])
def test_a_damaged_one_is_not_counted_among_those_kept(tmp_path: Path, step: int) -> None:
    for before in (5, 10):
        save_checkpoint(tmp_path, before, some_state(before))
    (tmp_path / "latest" / "state.json").write_bytes(b"")
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    put_damaged_aside(loaded)
    aside = ["step-000000010.damaged"]
    assert (tmp_path / "latest").resolve() == loaded.path.resolve()
    save_checkpoint(tmp_path, step, some_state(step))  # the run that went on from step 5
    assert names(tmp_path) == ["latest", "step-000000005", *sorted([f"step-{step:09d}", *aside])]


def test_a_passing_error_of_reading_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, no permission, no memory: no checkpoint is skipped for that."""
    for step in (5, 10):
        save_checkpoint(tmp_path, step, some_state(step))

    def refuse(path: Path, most_bytes: int) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(checkpoint, "read_bounded", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        load_checkpoint(tmp_path)


def test_a_disk_that_fails_under_the_newest_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, some_state(step))
    plain = checkpoint.read_bounded

    def fail(path: Path, most_bytes: int) -> bytes:
        if "step-000000010" in str(path.resolve()):
            raise OSError(errno.EIO, "Input/output error")
        return plain(path, most_bytes)

    monkeypatch.setattr(checkpoint, "read_bounded", fail)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded.step == 5


def test_the_checksums_are_those_of_sha256sum(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, some_state())
    latest = tmp_path / "latest"
    for line in (latest / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((latest / name).read_bytes()).hexdigest() == digest
    assert set(names(latest)) == set(FILES)


def test_a_copy_whose_link_became_a_folder_goes_on(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path / "run", step, some_state(step))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")  # follows links
    loaded = load_checkpoint(tmp_path / "copy")
    assert loaded is not None
    assert loaded.step == 10
    save_checkpoint(tmp_path / "copy", 15, some_state(15))
    loaded = load_checkpoint(tmp_path / "copy")
    assert loaded is not None
    assert loaded.step == 15


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, FORMAT_VERSION + 1])
def test_another_format_version_is_named(version: int, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, some_state())
    path = tmp_path / "latest" / "state.json"
    document = json.loads(path.read_text())
    document["format_version"] = version
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"checkpoint format {version}"):
        load_checkpoint(tmp_path)
