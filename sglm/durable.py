"""Writes that a crash cannot tear: aside, to the disk, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a file aside, which then takes the place of `path`.

    Whenever the machine stops, `path` is the old file or the new one, whole.
    """
    aside = path.with_name(f".{path.name}.aside")
    try:
        write(aside)
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_tensors(path: Path, tensors: "dict[str, Tensor]") -> None:
    """A safetensors file. Written by us, so that a full disk is the OSError it always is."""
    from safetensors.torch import save  # brings torch along, which not all who write need

    path.write_bytes(save(tensors))


def replace_text(path: Path, text: str) -> None:
    """`replace_file` for a small UTF-8 text."""
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))
