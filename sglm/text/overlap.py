"""Finds lines of one text that also occur in another: `sglm eval` warns about such lines.

`sglm prep` keeps the 64-bit hashes of each split's lines, in `SPLIT.lines` beside the ids. It keeps
at most 2²⁰ different hashes; for a text with more different lines, only the hashes below a
threshold. Equal lines have equal hashes, so the same sample of lines is kept for both texts. The
counts of the sample are scaled up to the whole (bottom-k sketches: Cohen & Kaplan 2007). So a split
takes at most 12 MB, in memory and on disk, for a text of any size. Up to a million different lines
the result is exact; beyond that it is an estimate.

The probability of a false match is at most 2²⁰/2⁶⁴ for each line. (A Bloom filter of the same size
would have false matches in the first thousand lines.) Lines of fewer than five words do not count:
"Chapter 2" is in every book. White space does not distinguish lines.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError
from sglm.storage.names import RUN_FILE
from sglm.text.lines import Piece

FEWEST_WORDS = 5
MOST_KEPT = 1 << 20
_MERGED_AT_ONCE = 1 << 16
_MAGIC = b"sglmlns1"
_HEADER_BYTES = 24
_MOST_COUNTED = 2**32 - 1

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.uint32]


def lines_file(split: str) -> str:
    """Returns the name of the file with the hashes of a split's lines."""
    return f"{split}.lines"


TRAINING_LINES = lines_file("train")  # its name in a run, too


@dataclass(frozen=True, kw_only=True)
class LineHashes:
    """The hashes of the lines of a text.

    Attributes:
        line_count: Number of lines that count (five words or more).
        shift: Number of zero bits with which a hash must begin to be kept: one in 2^shift is.
        hashes: Hashes of different lines, ascending.
        counts: Number of times that the line of each hash occurs.
    """

    line_count: int
    shift: int
    hashes: Hashes
    counts: Counts

    def overlap(self, other: "LineHashes") -> int:
        """Returns how many of these lines occur in the other text; an estimate if hashes were left
        out."""
        shift = max(self.shift, other.shift)
        here = _below(self.hashes, shift)
        # Sorting is safe: for some small sets, numpy 2.0 uses a table, which overflows on uint64.
        known_here = np.isin(self.hashes[:here], other.hashes, assume_unique=True, kind="sort")
        known = int(self.counts[:here][known_here].sum(dtype=np.int64)) << shift
        return min(known, self.line_count)

    def joined(self, other: "LineHashes") -> "LineHashes":
        """Returns the hashes of the lines of both texts together."""
        hashes, counts, shift = _sample(
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.counts, other.counts]),
            max(self.shift, other.shift),
        )
        return LineHashes(
            line_count=self.line_count + other.line_count, shift=shift, hashes=hashes, counts=counts
        )

    def write(self, path: Path) -> None:
        """Writes one file: a header, the hashes, the counts, all little-endian."""
        header = np.array([self.line_count, self.shift], dtype="<u8")
        parts = (header, self.hashes.astype("<u8"), self.counts.astype("<u4"))
        path.write_bytes(b"".join([_MAGIC, *(part.tobytes() for part in parts)]))

    @classmethod
    def read(cls, path: Path) -> "LineHashes | None":
        """Reads what `write` wrote; returns None if there is no such file.

        Raises:
            InputError: The file is damaged, or of another version.
        """
        if not path.exists() and not path.is_symlink():
            return None
        if not path.is_file():
            raise _damaged(path)
        kept, rest = divmod(path.stat().st_size - _HEADER_BYTES, 12)
        if rest or not 0 <= kept <= MOST_KEPT:
            raise _damaged(path)
        raw = path.read_bytes()
        if raw[:8] != _MAGIC or len(raw) != _HEADER_BYTES + 12 * kept:
            raise _damaged(path)
        lines, shift = map(int, np.frombuffer(raw, "<u8", 2, offset=8))
        hashes = np.frombuffer(raw, "<u8", kept, offset=_HEADER_BYTES).astype(np.uint64)
        counts = np.frombuffer(raw, "<u4", kept, offset=_HEADER_BYTES + 8 * kept)
        in_order = bool((hashes[1:] > hashes[:-1]).all())
        if shift > 63 or lines > sys.maxsize or not in_order or _below(hashes, shift) < kept:
            raise _damaged(path)
        return cls(line_count=lines, shift=shift, hashes=hashes, counts=counts.astype(np.uint32))


def find_training_lines(model_folder: Path) -> Path | None:
    """Returns the file with the hashes of the lines that a model was trained on, from the run that
    contains the model's folder.

    None if the folder was moved out of its run, or the run has no such file.
    """
    for run in model_folder.resolve().parents[:2]:  # RUN/model, RUN/snapshots/cycle-000
        if (run / RUN_FILE).is_file() and (run / TRAINING_LINES).exists():
            return run / TRAINING_LINES
    return None


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged, or not of this version; copy the folder again, or remove this file"
        " (without it, sglm cannot tell which lines were trained on)"
    )


class LineHasher:
    """A builder of the `LineHashes` of a text that comes in parts, in bounded memory."""

    def __init__(self) -> None:
        self._lines = self._shift = 0
        self._hashes: Hashes = np.empty(0, dtype=np.uint64)
        self._counts: Counts = np.empty(0, dtype=np.uint32)
        self._waiting = bytearray()

    def add(self, text: str) -> None:
        """Adds a part of the text that consists of whole lines.

        (If a very long line comes in parts, each part counts as a line.)
        """
        for line in text.split("\n"):
            words = line.split()
            if len(words) < FEWEST_WORDS:
                continue
            # Lone surrogates are refused elsewhere, with their own message.
            raw = " ".join(words).encode(errors="surrogatepass")
            self._waiting += blake2b(raw, digest_size=8).digest()
            self._lines += 1
        if len(self._waiting) >= 8 * max(_MERGED_AT_ONCE, len(self._hashes) // 2):
            self._merge()

    def watch(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yields the pieces unchanged, and adds the lines of each."""
        for piece in pieces:
            self.add(piece.text)
            yield piece

    def finish(self) -> LineHashes:
        """Returns the hashes of all lines that were added."""
        self._merge()
        return LineHashes(
            line_count=self._lines, shift=self._shift, hashes=self._hashes, counts=self._counts
        )

    def _merge(self) -> None:
        added = np.frombuffer(bytes(self._waiting), "<u8").astype(np.uint64)
        self._waiting.clear()
        self._hashes, self._counts, self._shift = _sample(
            np.concatenate([self._hashes, added]),
            np.concatenate([self._counts, np.ones(len(added), dtype=np.uint32)]),
            self._shift,
        )


def _sample(hashes: Hashes, counts: Counts, shift: int) -> tuple[Hashes, Counts, int]:
    """Merges equal hashes, sums their counts, and sorts; raises `shift` until at most `MOST_KEPT`
    hashes are left."""
    hashes, indices = np.unique(hashes, return_inverse=True)
    totals = np.bincount(indices, counts.astype(np.float64), minlength=len(hashes))
    kept = _below(hashes, shift)
    while kept > MOST_KEPT:
        shift += 1
        kept = _below(hashes, shift)
    return hashes[:kept].copy(), totals[:kept].clip(max=_MOST_COUNTED).astype(np.uint32), shift


def _below(hashes: Hashes, shift: int) -> int:
    """Returns how many of these ascending hashes begin with `shift` zero bits."""
    return int(np.searchsorted(hashes, np.uint64((1 << (64 - shift)) - 1), side="right"))
