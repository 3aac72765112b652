"""SHA-256 of files of any size, as it is kept on disk to recognize them."""

import hashlib
from pathlib import Path


def sha256_of(*paths: Path) -> str:
    """Of the files' bytes, one file after the other, in hexadecimal; never a whole file in memory.

    Raises:
        OSError: one is not there, or reading failed.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
