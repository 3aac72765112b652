"""sglm.errors: what the file system refuses, in the user's terms and with a cure."""

import errno
import os

import pytest

from sglm.errors import as_sglm_error


@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "free some"),
        (errno.EROFS, "give another --out"),
        (errno.EACCES, "this user may use"),
        (errno.ENOTDIR, "a file stands where a folder should"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_the_file_and_the_cure_are_named(number: int, cure: str) -> None:
    found = as_sglm_error(OSError(number, os.strerror(number), "runs/book"))
    assert found is not None
    assert found.exit_code == 1
    assert "(runs/book)" in str(found)
    assert cure in str(found)


def test_an_error_of_the_program_is_none_of_the_users() -> None:
    assert as_sglm_error(ValueError("x")) is None
    assert as_sglm_error(RuntimeError("size mismatch")) is None
    assert as_sglm_error(MemoryError()) is not None
