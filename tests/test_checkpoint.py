"""Checkpoints: what is saved comes back, and `latest` is always a complete one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm import checkpoint
from sglm.checkpoint import load_checkpoint, save_checkpoint
from sglm.errors import InputError


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


def test_round_trip_of_any_tree(tmp_path: Path) -> None:
    state = some_state()
    save_checkpoint(tmp_path, 7, state)
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 7
    assert equal(state, found[1])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nothing") is None


def test_latest_is_the_newest_and_old_ones_leave(tmp_path: Path) -> None:
    for step in (5, 10, 15, 15):
        save_checkpoint(tmp_path, step, some_state(step))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[1]["progress"]["step"] == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "latest",
        "step-000000010",
        "step-000000015",
    ]


def test_a_copy_that_lost_the_link_goes_on_from_the_newest(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, some_state(step))
    (tmp_path / "latest").unlink()
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 10


def test_what_was_just_written_is_never_dropped_as_old(tmp_path: Path) -> None:
    for step in (100, 200):
        save_checkpoint(tmp_path, step, some_state(step))
    save_checkpoint(tmp_path, 7, some_state(7))
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 7


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
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 5
    save_checkpoint(tmp_path, 10, some_state(10))  # and the leftovers are no obstacle
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 10
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100])
def test_damage_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    save_checkpoint(tmp_path, 5, some_state())
    (tmp_path / "latest" / file).write_bytes(content)
    with pytest.raises(InputError, match=r"step-000000005: damaged checkpoint"):
        load_checkpoint(tmp_path)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, some_state())
    path = tmp_path / "latest" / "state.json"
    document = json.loads(path.read_text())
    document["format_version"] = 99
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="checkpoint format 99"):
        load_checkpoint(tmp_path)
