"""Writes that a crash cannot tear: aside, to the disk, then renamed; and one writer at a time."""

import fcntl
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sglm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_WAIT_SECONDS = 5.0  # for one who is about to leave


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


def remove(path: Path) -> None:
    """Deletes a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file while the block runs.

    The system lets go of it when a process ends, however it ends. On a file system without such
    locks, the process that is named in the file holds it as long as it is alive.

    Raises:
        InputError: another process has it.
    """
    with open(path, "a+", encoding="utf-8") as file:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not _take(file):
            if time.monotonic() > deadline:
                raise InputError(
                    f"{path.parent}: in use by {_holder(file) or 'another process'}; stop that or"
                    f" wait for its end, or give another --out (if it is long gone: rm {path})"
                )
            time.sleep(0.1)
        _name_holder(file, f"process {os.getpid()} on {platform.node()}")
        try:
            yield
        finally:
            _name_holder(file, "")


def _take(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks
        return not _seems_alive(_holder(file))
    return True


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read(200).strip()


def _seems_alive(holder: str) -> bool:
    """Whether the named process is there; of another machine's we cannot know, and believe it."""
    named = re.fullmatch(r"process ([0-9]{1,9}) on (.*)", holder)
    if named is None or int(named[1]) == os.getpid():
        return False
    if named[2] != platform.node():
        return True
    try:
        os.kill(int(named[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _name_holder(file: TextIO, holder: str) -> None:
    file.truncate(0)
    file.write(holder)
    file.flush()
