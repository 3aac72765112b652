"""Checkpoints, a run's state on disk: versioned, with checksums, replaced atomically, no pickles.

A state is a tree of dicts and lists whose leaves are tensors and plain values. The tensors go to
`state.safetensors`; the tree itself, with a reference in each tensor's place, goes to `state.json`;
the checksums of both go to `SHA256SUMS`, in the format of `sha256sum -c`.
`checkpoints/latest` is a link that always points to a complete checkpoint.
"""

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sglm.errors import InputError
from sglm.storage.digest import sha256_of
from sglm.storage.durable import errors_naming, remove, sync, write_tensors
from sglm.storage.names import CHECKPOINT_SUMS
from sglm.storage.untrusted import read_bounded

# Incremented whenever the structure of the saved state changes; older versions cannot be read.
FORMAT_VERSION = 6
_STATE, _TENSORS = "state.json", "state.safetensors"
_REFERENCE = "tensor:"
_DAMAGED = ".damaged"
# Other reading errors may be temporary.
_ERRORS_OF_DAMAGE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO}


class Checkpoint(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        step: Number of steps done.
        state: The state's tree, with tensors on the CPU.
        path: The checkpoint's folder.
        damaged: For each newer checkpoint that cannot be used, a message with the reason.
    """

    step: int
    state: Any
    path: Path
    damaged: Mapping[Path, str]


class _Damaged(Exception):
    """A checkpoint cannot be used; the message says why."""


def save_checkpoint(folder: Path, step: int, state: Any, *, keep: int = 2) -> None:
    """Writes `folder/step-…`, points `folder/latest` to it, and deletes all but the newest `keep`.

    At every moment, `latest` is a complete checkpoint, the old one or the new one. By default the
    one before the newest is kept too, in case the disk damages the newest.

    Raises:
        OSError: Writing failed; the earlier checkpoints are unchanged.
    """
    if not folder.exists():
        folder.mkdir(parents=True)
        sync(folder.parent)
    clear_up(folder)
    final = _free_name(folder, f"step-{step:09d}")
    aside = folder / f"{final.name}.partial"
    try:
        aside.mkdir()
        _write(aside, step, state)
        aside.rename(final)
        _point_to(final)
        complete = complete_checkpoints(folder)
        newest = complete.index(final)
        # Checkpoints of later steps are obsolete: the run has gone back to an earlier one, because
        # a checkpoint was damaged or the training diverged.
        for old in complete[: max(0, newest + 1 - keep)] + complete[newest + 1 :]:
            # Renamed first: a partly removed checkpoint must not look complete.
            old.rename(old.with_name(f"{old.name}.partial"))
    finally:
        clear_up(folder)


def clear_up(folder: Path) -> None:
    """Removes unfinished checkpoints."""
    for leftover in folder.glob("*.partial"):
        remove(leftover)


def put_damaged_aside(checkpoint: Checkpoint) -> None:
    """Renames the damaged checkpoints, and points `latest` to the one that was read. Otherwise the
    damaged ones would count among the checkpoints to keep."""
    if checkpoint.damaged:
        _point_to(checkpoint.path)
    for path in checkpoint.damaged:
        aside = path.with_name(f"{path.name}{_DAMAGED}")
        if aside.exists():
            remove(aside)
        path.rename(aside)


def _point_to(checkpoint: Path) -> None:
    """Points `latest` to a checkpoint."""
    folder = checkpoint.parent
    # A run that was copied with links followed has a folder in place of the link.
    if (folder / "latest").is_dir() and not (folder / "latest").is_symlink():
        remove(folder / "latest")
    link = folder / "latest.partial"
    link.symlink_to(checkpoint.name)
    link.replace(folder / "latest")
    sync(folder)


def _free_name(folder: Path, name: str) -> Path:
    """Returns a path that no checkpoint has. A run that stops twice at one step makes two
    checkpoints of it, so that one of them always exists; the second sorts after the first."""
    taken = [path.suffix for path in complete_checkpoints(folder) if path.stem == name]
    again = max((int(suffix[1:] or 0) for suffix in taken), default=-1) + 1
    return folder / (f"{name}.{again:02d}" if again else name)


def _write(folder: Path, step: int, state: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    document = json.dumps({"format_version": FORMAT_VERSION, "step": step, "state": tree}).encode()
    with errors_naming(folder / _STATE):
        (folder / _STATE).write_bytes(document)
    sums = {_STATE: hashlib.sha256(document).hexdigest()}
    sums[_TENSORS] = write_tensors(folder / _TENSORS, tensors)
    lines = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    with errors_naming(folder / CHECKPOINT_SUMS):
        (folder / CHECKPOINT_SUMS).write_text(lines, encoding="utf-8")
    for path in (*(folder / name for name in (*sums, CHECKPOINT_SUMS)), folder):
        sync(path)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Reads the newest intact checkpoint; returns None if there are no checkpoints at all.

    It is `folder/latest` or, if that is damaged or a copy of the folder has lost the link, the
    newest of the others.

    Raises:
        InputError: All checkpoints are damaged, or one has another format version.
        OSError: A checkpoint cannot be read at the moment.
    """
    damaged: dict[Path, str] = {}
    for path in _candidates(folder):
        try:
            return Checkpoint(*_read(path), path, damaged)
        except _Damaged as damage:
            damaged[path] = f"{path}: damaged checkpoint ({damage})"
    if not damaged:
        return None
    raise InputError(
        f"{next(iter(damaged.values()))}, and none to go back to; remove {folder} to train from"
        " the start, or give another --out"
    )


def _candidates(folder: Path) -> list[Path]:
    """Returns the checkpoint that `latest` points to, then those before it, the newest first, and
    then any others."""
    complete = complete_checkpoints(folder)
    latest = folder / "latest"
    target = folder / latest.readlink().name if latest.is_symlink() else None
    if target not in complete:
        return complete[::-1]
    latest_index = complete.index(target)
    return [*complete[: latest_index + 1][::-1], *complete[latest_index + 1 :]]


def _read(folder: Path) -> tuple[int, Any]:
    """Reads a checkpoint as `(step, state)`.

    Raises:
        _Damaged: The checkpoint is not what was written.
        InputError: It has another format version.
    """
    try:
        raw = _content(folder / _STATE)
        document = json.loads(raw)
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise InputError(
                f"{folder}: checkpoint format {version}, this sglm reads {FORMAT_VERSION};"
                " use the version that wrote it, or start in another --out"
            )
        sums = _read_sums(folder)
        for name in (_STATE, _TENSORS):
            _check(folder / name, sums[name])
        tensors = load_file(folder / _TENSORS)
        return int(document["step"]), _unpack(document["state"], tensors)
    except OSError as error:
        if error.errno not in _ERRORS_OF_DAMAGE:
            raise
        raise _Damaged(str(error)) from None
    except (
        *(ValueError, LookupError, TypeError, OverflowError, AttributeError),
        *(SafetensorError, RecursionError),
    ) as error:
        raise _Damaged(str(error) or type(error).__name__) from None


def _read_sums(folder: Path) -> dict[str, str]:
    """Returns the checksums by file name."""
    lines = _content(folder / CHECKPOINT_SUMS).decode().splitlines()
    return {name: digest for digest, name in (line.split("  ") for line in lines)}


def _content(path: Path) -> bytes:
    """Reads a regular file of any size; refuses a pipe or device, which may never end."""
    try:
        return read_bounded(path, path.stat().st_size)
    except InputError as error:
        raise ValueError(error) from None


def _check(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path.name} is not there, or not a file")
    if sha256_of(path) != expected:
        raise ValueError(f"{path.name} is not what was written")


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints (those with final names) by step, the newest last."""
    names = re.compile(r"step-[0-9]{9,}(\.[0-9]{2,})?")
    return sorted(path for path in folder.glob("step-*") if names.fullmatch(path.name))


def _pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Returns the tree with each tensor replaced by a reference. The tensor is added to `tensors`
    under its name: the path to it from the root."""
    if isinstance(tree, Tensor):
        tensors[name] = tree
        return _REFERENCE + name
    if isinstance(tree, dict):
        # Keys may be integers (optimizers number their parameters), so they are kept as pairs.
        return {
            "dict": [[key, _pack(value, f"{name}/{key}", tensors)] for key, value in tree.items()]
        }
    if isinstance(tree, list | tuple):
        return [_pack(value, f"{name}/{index}", tensors) for index, value in enumerate(tree)]
    return tree


def _unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, str) and tree.startswith(_REFERENCE):
        return tensors[tree.removeprefix(_REFERENCE)]
    if isinstance(tree, dict):
        return {key: _unpack(value, tensors) for key, value in tree["dict"]}
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    return tree


def random_state() -> dict[str, Tensor]:
    """Returns the state of torch's global generators, from which dropout masks are drawn."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Restores what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
