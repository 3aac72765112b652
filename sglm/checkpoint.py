"""A run's state on disk: versioned, written aside and renamed, with checksums, never a pickle.

A state is a tree of dicts and lists whose leaves are tensors and plain values. The tensors go to
`tensors-….safetensors`, the tree itself, with a reference in each tensor's place, to `state.json`,
and the checksums of all of them to `SHA256SUMS` (`sha256sum -c` reads it too).
`checkpoints/latest` is a link that always points to a complete checkpoint.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sglm.durable import remove, sync
from sglm.errors import InputError
from sglm.untrusted import read_bounded

# 2: stretches, trust and the watch are part of a run; 3: features of a stretch; 4: checksums.
FORMAT_VERSION = 4
_STATE, _SUMS = "state.json", "SHA256SUMS"
_REFERENCE = "tensor:"
# Tensors are written in files of this size, so that saving takes little memory of its own.
FILE_BYTES = 1 << 24


class Checkpoint(NamedTuple):
    """What was found.

    Attributes:
        step: steps done.
        state: the tree, tensors on the CPU.
        path: where it lies.
        damaged: newer ones, and what is wrong with each.
    """

    step: int
    state: Any
    path: Path
    damaged: Mapping[Path, str]


class _Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


def save_checkpoint(folder: Path, step: int, state: Any, keep: int = 2) -> None:
    """Writes `folder/step-…`, then points `folder/latest` to it and drops all but `keep`.

    At any moment of this, `latest` is the old checkpoint or the new one, whole. The one before the
    newest is kept in case a disk fails under the newest.

    Raises:
        OSError: the disk refuses; what was there before is there still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_up(folder)
    final = _free_name(folder, f"step-{step:09d}")
    aside = folder / f"{final.name}.partial"
    try:
        aside.mkdir()
        _write(aside, step, state)
        aside.rename(final)
        _point_to(final)
        complete = complete_checkpoints(folder)
        place = complete.index(final)
        # Later ones are of a past that was gone back from, because they are damaged or diverged.
        for old in complete[: max(0, place + 1 - keep)] + complete[place + 1 :]:
            _set_aside(old)
    finally:
        clear_up(folder)


def clear_up(folder: Path) -> None:
    """Removes what is unfinished."""
    for leftover in folder.glob("*.partial"):
        remove(leftover)


def forget_damaged(checkpoint: Checkpoint) -> None:
    """Removes the damaged checkpoints in whose place another one is used, which is then `latest`:
    otherwise they would be kept as the one to go back to."""
    if checkpoint.damaged:
        _point_to(checkpoint.path)
        for path in checkpoint.damaged:
            _set_aside(path)
        clear_up(checkpoint.path.parent)


def _point_to(checkpoint: Path) -> None:
    """Makes it `latest`."""
    folder = checkpoint.parent
    # A copy made without links has a folder in the link's place.
    if (folder / "latest").is_dir() and not (folder / "latest").is_symlink():
        remove(folder / "latest")
    link = folder / "latest.partial"
    link.symlink_to(checkpoint.name)
    link.replace(folder / "latest")
    sync(folder)


def _set_aside(checkpoint: Path) -> None:
    """To be cleared up: half removed, it must not look like a whole one."""
    checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.partial"))


def _free_name(folder: Path, name: str) -> Path:
    """Stopped twice at one step there are two checkpoints of it, so that neither is ever missing:
    the second sorts behind the first."""
    taken = [path.suffix for path in complete_checkpoints(folder) if path.stem == name]
    again = max((int(suffix[1:] or 0) for suffix in taken), default=-1) + 1
    return folder / (f"{name}.{again:02d}" if again else name)


def _write(folder: Path, step: int, state: Any) -> None:
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    document = {"format_version": FORMAT_VERSION, "step": step, "state": tree}
    sums = []
    for name, content in _files(json.dumps(document).encode(), tensors):
        (folder / name).write_bytes(content)
        sync(folder / name)
        sums.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / _SUMS).write_text("".join(sums), encoding="utf-8")
    sync(folder / _SUMS)
    sync(folder)


def _files(document: bytes, tensors: dict[str, Tensor]) -> Iterator[tuple[str, bytes]]:
    """Names and contents, made one after the other."""
    yield _STATE, document
    number, waiting, waiting_bytes = count(), dict[str, Tensor](), 0
    for place, tensor in tensors.items():
        if waiting and waiting_bytes + tensor.nbytes > FILE_BYTES:
            yield f"tensors-{next(number):03d}.safetensors", save(waiting)
            waiting, waiting_bytes = {}, 0
        # A clone: safetensors refuses tensors that share memory.
        waiting[place] = tensor.detach().cpu().clone().contiguous()
        waiting_bytes += tensor.nbytes
    yield f"tensors-{next(number):03d}.safetensors", save(waiting)


def load_checkpoint(
    folder: Path, accept: Callable[[Any], bool] = lambda state: True
) -> Checkpoint | None:
    """The newest checkpoint that is whole; None when there is none at all.

    That is `folder/latest`, or, where it is damaged or a copy of the folder has lost the link, the
    newest of the others.

    Args:
        folder: of the checkpoints.
        accept: whether a state will do.

    Raises:
        InputError: it is damaged and there is none to go back to; of another format version.
    """
    damaged: dict[Path, str] = {}
    for path in _candidates(folder):
        try:
            step, state = _read(path)
        except _Damaged as damage:
            damaged[path] = f"{path}: damaged checkpoint ({damage})"
            continue
        if accept(state):
            return Checkpoint(step, state, path, damaged)
    if not damaged:
        return None
    raise InputError(
        f"{next(iter(damaged.values()))}, and none to go back to; remove {folder} to train from"
        " the start, or give another --out"
    )


def _candidates(folder: Path) -> list[Path]:
    """What `latest` says, those before it, the newest first, and then any others."""
    complete = complete_checkpoints(folder)
    latest = folder / "latest"
    named = folder / latest.readlink().name if latest.is_symlink() else None
    if named not in complete:
        return complete[::-1]
    place = complete.index(named)
    return [*complete[: place + 1][::-1], *complete[place + 1 :]]


def _read(folder: Path) -> tuple[int, Any]:
    """
    Raises:
        _Damaged: not what was written.
        InputError: of another format version.
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
        _check(_STATE, raw, sums.pop(_STATE))
        tensors: dict[str, Tensor] = {}
        for name, expected in sums.items():
            content = _content(folder / name)
            _check(name, content, expected)
            tensors |= load(content)
        return int(document["step"]), _unpack(document["state"], tensors)
    except (
        *(OSError, ValueError, LookupError, TypeError, OverflowError, AttributeError),
        *(SafetensorError, RecursionError),
    ) as error:
        raise _Damaged(str(error) or type(error).__name__) from None


def _read_sums(folder: Path) -> dict[str, str]:
    """Checksums by file name."""
    lines = _content(folder / _SUMS).decode().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    for name in sums:
        if name != _STATE and not (name.startswith("tensors-") and Path(name).name == name):
            raise ValueError(f"{_SUMS} speaks of {name!r}")
    return sums


def _content(path: Path) -> bytes:
    """Of an ordinary file, however large: no pipe or device, which might never end."""
    try:
        return read_bounded(path, path.stat().st_size)
    except InputError as error:
        raise ValueError(error) from None


def _check(name: str, content: bytes, expected: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{name} is not what was written")


def complete_checkpoints(folder: Path) -> list[Path]:
    """By step, the newest last: what was renamed into place is complete."""
    names = re.compile(r"step-[0-9]{9,}(\.[0-9]{2,})?")
    return sorted(path for path in folder.glob("step-*") if names.fullmatch(path.name))


def _pack(tree: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors[place] = tree
        return _REFERENCE + place
    if isinstance(tree, dict):
        # Keys may be integers (optimizers number their parameters), so they are kept as pairs.
        return {
            "dict": [[key, _pack(value, f"{place}/{key}", tensors)] for key, value in tree.items()]
        }
    if isinstance(tree, list | tuple):
        return [_pack(value, f"{place}/{index}", tensors) for index, value in enumerate(tree)]
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
    """The state of torch's global generators, from which dropout masks come."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Tensor]) -> None:
    """Puts `random_state` back."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
