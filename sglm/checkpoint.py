"""A run's state on disk: versioned, written aside and renamed, never a pickle.

A state is a tree of dicts and lists whose leaves are tensors and plain values. The tensors go to
`state.safetensors`, the tree itself, with a reference in each tensor's place, to `state.json`.
`checkpoints/latest` is a link that always points to a complete checkpoint.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sglm.durable import sync, write_tensors
from sglm.errors import InputError

FORMAT_VERSION = 3  # 2: stretches, trust and the watch are part of a run; 3: features of a stretch
_REFERENCE = "tensor:"
_KEPT = 2  # the newest, and the one before it in case a disk fails under the newest


def save_checkpoint(folder: Path, step: int, state: Any) -> None:
    """Writes `folder/step-…`, then points `folder/latest` to it and drops old ones.

    At any moment of this, `latest` is the old checkpoint or the new one, whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.partial"):
        remove(leftover)
    final = folder / f"step-{step:09d}"
    aside = folder / f"{final.name}.partial"
    aside.mkdir()
    tensors: dict[str, Tensor] = {}
    tree = _pack(state, "", tensors)
    write_tensors(aside / "state.safetensors", tensors)
    document = {"format_version": FORMAT_VERSION, "step": step, "state": tree}
    (aside / "state.json").write_text(json.dumps(document), encoding="utf-8")
    for path in (aside / "state.safetensors", aside / "state.json", aside):
        sync(path)
    if final.exists():
        # Stopped twice at one step: the link may point here, so the old one leaves last.
        replaced = folder / f"{final.name}.old.partial"
        final.rename(replaced)
    aside.rename(final)
    link = folder / "latest.partial"
    link.symlink_to(final.name)
    link.replace(folder / "latest")
    sync(folder)
    others = [path for path in complete_checkpoints(folder) if path != final]
    for old in others[: len(others) - (_KEPT - 1)]:
        shutil.rmtree(old)
    for leftover in folder.glob("*.partial"):
        remove(leftover)


def load_checkpoint(folder: Path) -> tuple[int, Any] | None:
    """`(step, state)` of the newest checkpoint, tensors on the CPU; None when there is none.

    That is `folder/latest`, or, where a copy of the folder has lost the link, the highest step.

    Raises:
        InputError: it is damaged, or of another format version.
    """
    latest = folder / "latest"
    if not latest.exists():
        complete = complete_checkpoints(folder)
        if not complete:
            return None
        latest = complete[-1]
    try:
        document = json.loads((latest / "state.json").read_text(encoding="utf-8"))
        if document["format_version"] != FORMAT_VERSION:
            raise InputError(
                f"{latest}: checkpoint format {document['format_version']}, this sglm reads"
                f" {FORMAT_VERSION}; use the version that wrote it, or start in another --out"
            )
        tensors = load_file(latest / "state.safetensors")
        return int(document["step"]), _unpack(document["state"], tensors)
    except (
        *(OSError, ValueError, LookupError, TypeError, OverflowError, AttributeError),
        *(SafetensorError, RecursionError),
    ) as error:
        raise InputError(
            f"{latest.resolve()}: damaged checkpoint ({error}); delete that folder and point"
            " `latest` to the one before it, or start in another --out"
        ) from None


def complete_checkpoints(folder: Path) -> list[Path]:
    """By step, the newest last: what was renamed into place is complete."""
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".partial")


def remove(path: Path) -> None:
    """Deletes a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _pack(tree: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        # A clone: safetensors refuses tensors that share memory.
        tensors[place] = tree.detach().cpu().clone().contiguous()
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
