"""Model folders: config.json and safetensors of any content load whole, or are refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sglm.errors import InputError, SglmError
from sglm.loading import load
from sglm.model.folder import find_model_folder, load_weights
from tests.fuzz.examples import damage, damages, dumped, examples, spoilt

Copies = Callable[[Path], Path]
ModelFolders = Callable[[str], Path]


@pytest.fixture
def folder_copy(model_folders: ModelFolders, copies: Copies) -> Callable[[], Path]:
    """A copy of a good model folder."""
    return lambda: copies(model_folders("char"))


FolderCopy = Callable[[], Path]


def load_or_refuse(folder: Path) -> bool:
    """Whether it loaded; then it works."""
    try:
        model = load_weights(folder)
        lm = load(folder, "cpu")
    except InputError as error:
        assert len(str(error)) < 1000
        return False
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert bool(torch.isfinite(parameter).all())
    lm.score(["the cat", ""])
    lm.generate("the", tokens=2, seed=0)
    return True


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write(path: Path, header: bytes, data: bytes) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


@given(data=st.data())
@examples(60)
def test_any_card_is_read_or_refused(folder_copy: FolderCopy, data: st.DataObject) -> None:
    folder = folder_copy()
    damage(folder / "config.json", data)
    load_or_refuse(folder)


@given(data=st.data())
@examples(60)
def test_any_header_is_read_or_refused(folder_copy: FolderCopy, data: st.DataObject) -> None:
    folder = folder_copy()
    header, tensors = header_of(folder / "model.safetensors")
    raw = data.draw(damages(dumped(header)))
    write(folder / "model.safetensors", raw, tensors)
    load_or_refuse(folder)


@given(data=st.data())
@examples(30)
def test_any_bytes_are_weights_or_refused(folder_copy: FolderCopy, data: st.DataObject) -> None:
    folder = folder_copy()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data.draw(spoilt(whole)))
    load_or_refuse(folder)


def declare(name: str, **facts: object) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(facts)


def overlap(header: dict[str, Any]) -> None:
    """Two tensors of one shape at the same offsets, and as many bytes unused."""
    header["layers.1.weight_hh"]["data_offsets"] = header["layers.1.weight_ih"]["data_offsets"]


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a huge shape": declare("embedding", shape=[2**40, 2**40]),
    "a shape that overflows": declare("embedding", shape=[2**62, 8]),
    "a shape of many numbers": declare("embedding", shape=[1] * 100_000),
    "a negative shape": declare("embedding", shape=[-1, 8]),
    "a shape of nothing": declare("embedding", shape=[0, 8], data_offsets=[0, 0]),
    "other numbers": declare("embedding", dtype="F16"),
    "unknown numbers": declare("embedding", dtype="F33"),
    "whole numbers": declare("embedding", dtype="I32"),
    "beyond the end": declare("embedding", data_offsets=[0, 2**60]),
    "backwards": declare("embedding", data_offsets=[100, 0]),
    "overlapping": overlap,
    "missing": lambda header: header.pop("softmax_bias"),
    "extra": lambda header: header.update(more=header["softmax_bias"]),
    "a name like a path": lambda header: header.update({"../../x": header.pop("embedding")}),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(folder_copy: FolderCopy, lie: str) -> None:
    folder = folder_copy()
    assert load_or_refuse(folder)
    header, tensors = header_of(folder / "model.safetensors")
    LIES[lie](header)
    write(folder / "model.safetensors", dumped(header), tensors)
    assert not load_or_refuse(folder)


@pytest.mark.parametrize("length", [0, 7, 2**20, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_any_length_is_refused(folder_copy: FolderCopy, length: int) -> None:
    folder = folder_copy()
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + raw[8:])
    assert not load_or_refuse(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_refused(folder_copy: FolderCopy, value: float) -> None:
    folder = folder_copy()
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.bias"][3] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError, match="not finite"):
        load_weights(folder)


def test_weights_so_large_that_they_overflow_end_in_words_and_valid_json(
    folder_copy: FolderCopy,
) -> None:
    from typer.testing import CliRunner

    from sglm.cli.main import app

    folder = folder_copy()
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    lm = load(folder, "cpu")
    with pytest.raises(SglmError, match="prediction is not a number"):
        lm.generate("the", tokens=2, seed=0)
    for arguments in (("score", str(folder), "-", "--json", "--per-token"),):
        result = CliRunner().invoke(app, arguments, input="the cat\n\n")
        assert result.exit_code == 0, result.stderr
        lines = [
            json.loads(line, parse_constant=pytest.fail)
            for line in result.stdout.split("\n")
            if line
        ]
        assert lines[0]["logprob"] is None
    result = CliRunner().invoke(
        app, ["eval", str(folder), "--text", "-", "--json"], input="the cat\n"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout, parse_constant=pytest.fail)["nll_nats"] is None


def test_links_to_good_files_are_followed_and_other_things_refused(
    folder_copy: FolderCopy, tmp_path: Path
) -> None:
    folder = folder_copy()
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert load_or_refuse(linked)
    for path in sorted(linked.iterdir()):
        path.unlink()
        path.symlink_to("/dev/zero")
        assert not load_or_refuse(linked), path.name
        path.unlink()
        path.mkdir()
        assert not load_or_refuse(linked), path.name
        path.rmdir()
        path.symlink_to(folder / path.name)


@given(st.one_of(st.text(st.characters(), max_size=30), st.sampled_from(["a\0b", "..", "/", "~"])))
@examples(40)
def test_any_path_is_a_model_folder_or_refused(name: str) -> None:
    try:
        find_model_folder(Path("/nowhere") / name.lstrip("/."))
    except (InputError, UnicodeEncodeError):
        # A lone surrogate is no name that a system without such encodings can have.
        return
