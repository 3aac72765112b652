"""Atomic writes (to a temporary file, synced, then renamed), and locks for a single writer."""

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from sglm.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# The names of torch's types in safetensors files.
_TENSOR_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_WAIT_SECONDS = 5.0  # for a lock whose holder is about to end


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with errors_naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file, which is then renamed to `path`.

    If the machine stops at any moment, `path` is the complete old file or the complete new one.
    """
    aside = path.with_name(f".{path.name}.aside")
    # Removes a killed process's leftover, or a link through which the content would go elsewhere.
    aside.unlink(missing_ok=True)
    try:
        with errors_naming(path):
            write(aside)
            sync(aside)
            aside.replace(path)
            sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Inside the block, file-system errors name this file if they name none, as for a write to an
    open file on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> str:
    """Writes a safetensors file, one tensor at a time; tensors may be on a GPU, or share memory.

    The format is implemented here, because the safetensors library either copies all tensors into
    one block of memory first, or leaves a temporary file behind when the process is killed.

    Returns:
        The file's SHA-256 in hexadecimal.

    Raises:
        OSError: Writing failed.
    """
    import torch

    codes = {getattr(torch, name): code for code, name in _TENSOR_TYPES.items()}
    # Wider types first, so that all are aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header, end = dict[str, object](), 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": codes[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    header_bytes = json.dumps(header).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    digest = hashlib.sha256()
    with errors_naming(path), open(path, "wb") as file:

        def write(content: Any) -> None:  # bytes, or an array of them
            file.write(content)
            digest.update(content)

        write(len(header_bytes).to_bytes(8, "little"))
        write(header_bytes)
        for _, tensor in ordered:
            numbers = tensor.detach().cpu().contiguous().reshape(-1)
            if numbers.stride(0) != 1:  # a single number counts as contiguous with any stride
                numbers = numbers.clone(memory_format=torch.contiguous_format)
            write(numbers.view(torch.uint8).numpy())
    return digest.hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Replaces a file by a small UTF-8 text, as `replace_file` does."""
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

    The system releases the lock when the process ends for any reason. On a file system without
    locks, the process that is named in the file holds it as long as it is alive.

    Raises:
        InputError: Another process holds the lock, or `path` is not an ordinary file.
    """
    if (path.exists() and not path.is_file()) or path.is_symlink():
        raise InputError(f"{path}: not an ordinary file; remove it")
    with open(path, "a+", encoding="utf-8", errors="replace") as file:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not _acquired(lock := try_lock(file), file):
            if time.monotonic() > deadline:
                cure = f" (if it is long gone: rm {path})" if lock is None else ""
                raise InputError(
                    f"{path.parent}: in use by {_holder(file) or 'another process'}; stop that or"
                    f" wait for its end, or give another --out{cure}"
                )
            time.sleep(0.1)
        _name_holder(file, f"process {os.getpid()} on {platform.node()}")
        try:
            yield
        finally:
            _name_holder(file, "")


def try_lock(file: IO[Any]) -> bool | None:
    """Locks an open file for this process without waiting. Returns whether it succeeded; None if
    the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _acquired(lock: bool | None, file: TextIO) -> bool:
    """Returns whether this process holds the lock, given what `try_lock` returned."""
    return not _seems_alive(_holder(file)) if lock is None else lock


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read(200).strip()


def _seems_alive(holder: str) -> bool:
    """Returns whether the named process is alive; one on another machine is assumed to be."""
    process = re.fullmatch(r"process ([0-9]{1,9}) on (.*)", holder)
    if process is None or int(process[1]) == os.getpid():
        return False
    if process[2] != platform.node():
        return True
    try:
        os.kill(int(process[1]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is alive, but belongs to another user
    return True


def _name_holder(file: TextIO, holder: str) -> None:
    with errors_naming(Path(file.name)):
        file.truncate(0)
        file.write(holder)
        file.flush()
