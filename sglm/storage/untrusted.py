"""Reads of files from untrusted sources: of limited size, and strict JSON only.

A folder from an untrusted source may hold anything under the names that sglm looks for: a pipe that
never ends, a link to a device, a gigabyte of brackets. The functions here read only a regular file
of a size that sglm itself could have written, and only JSON as the standard defines it (RFC 8259);
Python's own parser accepts more.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeGuard

from sglm.errors import InputError


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Reads the whole of a small file.

    Raises:
        InputError: The file has more than `max_bytes`, or is a folder, a pipe or a device.
        OSError: The file is missing, or reading failed.
    """
    try:
        # Non-blocking: otherwise opening a pipe would wait until another process writes into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise InputError(f"{path}: a link or a socket that leads nowhere") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InputError(f"{path}: not an ordinary file; copy the folder again")
        with open(descriptor, "rb", closefd=False) as file:
            raw = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(raw) > max_bytes:
        raise InputError(
            f"{path}: larger than the {max_bytes / 2**20:.3g} MiB that such a file may have; "
            "it is damaged, or not what its name says"
        )
    return raw


def given_path(what: str, path: str | os.PathLike[str]) -> Path:
    """Returns the path that a caller in Python has given.

    Args:
        what: What is expected at the path, for the error message.
        path: The caller's argument.

    Raises:
        InputError: It is not a path, or is empty (which does not mean the current folder).
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"{what} must be given as a path, not {type(path).__name__}")
    if not (name := os.fsdecode(path)):
        raise InputError(f"the name of {what} is empty; for the current folder give '.'")
    return Path(name)


def parse_json(raw: bytes | str) -> Any:
    """Parses a JSON document in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: It is not JSON, has a key twice in one object, has numbers that no finite float
            holds (`NaN`, `1e999`) or integers of thousands of digits, or is nested too deeply
            (hundreds of levels).
    """
    text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
    try:
        return json.loads(
            text,
            parse_float=_finite,
            parse_constant=_finite,
            object_pairs_hook=_with_distinct_keys,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(path: Path, max_bytes: int = 1 << 20) -> Any:
    """Parses a small file with `parse_json`.

    Raises:
        InputError, OSError: See `read_bounded`.
        ValueError: See `parse_json`.
    """
    return parse_json(read_bounded(path, max_bytes))


def is_count(value: object) -> TypeGuard[int]:
    """Returns whether a value is an integer from 0 to 2⁶³ - 1; a bool does not count as one."""
    return type(value) is int and 0 <= value < 2**63


def is_amount(value: object) -> bool:
    """Returns whether a value is a number of at least zero; a bool does not count as one."""
    return type(value) in (int, float) and value >= 0  # type: ignore[operator]


def is_sha256(value: object) -> bool:
    """Returns whether a value is a SHA-256 checksum in hexadecimal."""
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _with_distinct_keys(pairs: list[tuple[Hashable, Any]]) -> dict[Hashable, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return members
