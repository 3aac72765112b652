"""The SHA-256 checksum of files, which is stored to recognize them."""

import hashlib
from pathlib import Path


def sha256_of(*paths: Path) -> str:
    """Returns the SHA-256 of the concatenated files in hexadecimal; reads them in small blocks.

    Raises:
        OSError: A file is missing, or reading failed.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
