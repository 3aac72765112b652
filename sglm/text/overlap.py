"""Which lines of one text also occur in another: `sglm eval` warns of such lines.

`sglm prep` keeps, of each split, the 64-bit hashes of its lines, in `SPLIT.lines` beside the ids.
It keeps at most 2²⁰ different hashes. Of a text with more lines, it keeps only the hashes below a
threshold. Equal lines have equal hashes, so the same sample of lines is kept of both texts. The
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
    """The name of the file with the lines of a split."""
    return f"{split}.lines"


TRAINING_LINES = lines_file("train")  # in a run too


@dataclass(frozen=True, kw_only=True)
class LineHashes:
    """The hashes of the lines of a text.

    lines: the number of lines that count (five words or more).
    shift: only hashes that begin with this many zero bits are kept: one in 2^shift.
    hashes: of different lines, ascending.
    counts: how often the line of each hash occurs.
    """

    lines: int
    shift: int
    hashes: Hashes
    counts: Counts

    def overlap(self, other: "LineHashes") -> int:
        """How many of these lines occur in the other text; an estimate if hashes were left out."""
        shift = max(self.shift, other.shift)
        here = _below(self.hashes, shift)
        # By sorting: numpy 2.0 uses a table for some small sets, which overflows on such numbers.
        known_here = np.isin(self.hashes[:here], other.hashes, assume_unique=True, kind="sort")
        known = int(self.counts[:here][known_here].sum(dtype=np.int64)) << shift
        return min(known, self.lines)

    def joined(self, other: "LineHashes") -> "LineHashes":
        """The lines of both texts."""
        hashes, counts, shift = _sample(
            np.concatenate([self.hashes, other.hashes]),
            np.concatenate([self.counts, other.counts]),
            max(self.shift, other.shift),
        )
        return LineHashes(lines=self.lines + other.lines, shift=shift, hashes=hashes, counts=counts)

    def write(self, path: Path) -> None:
        """Writes one file: a header, the hashes, the counts, all little-endian."""
        header = np.array([self.lines, self.shift], dtype="<u8")
        parts = (header, self.hashes.astype("<u8"), self.counts.astype("<u4"))
        path.write_bytes(b"".join([_MAGIC, *(part.tobytes() for part in parts)]))

    @classmethod
    def read(cls, path: Path) -> "LineHashes | None":
        """None where there is no such file.

        Raises:
            InputError: damaged, or of another version.
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
        return cls(lines=lines, shift=shift, hashes=hashes, counts=counts.astype(np.uint32))


def find_training_lines(model_folder: Path) -> Path | None:
    """The file of the lines that a model was trained on, in the run that its folder is part of.

    None if the model's folder was moved out of its run, or the run has no such file.
    """
    for run in model_folder.resolve().parents[:2]:  # RUN/model, RUN/snapshots/cycle-000
        if (run / RUN_FILE).is_file() and (run / TRAINING_LINES).exists():
            return run / TRAINING_LINES
    return None


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged, or not of this version; without it sglm cannot tell"
        " which lines were trained on: remove it, or copy the folder again"
    )


class LineHasher:
    """Makes the `LineHashes` of a text that comes in parts, in bounded memory."""

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
            # A lone surrogate is refused elsewhere, with its own message.
            raw = " ".join(words).encode(errors="surrogatepass")
            self._waiting += blake2b(raw, digest_size=8).digest()
            self._lines += 1
        if len(self._waiting) >= 8 * max(_MERGED_AT_ONCE, len(self._hashes) // 2):
            self._merge()

    def watch(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """Yields the same pieces, and adds the lines of each."""
        for piece in pieces:
            self.add(piece.text)
            yield piece

    def finish(self) -> LineHashes:
        """The lines of all that was added."""
        self._merge()
        return LineHashes(
            lines=self._lines, shift=self._shift, hashes=self._hashes, counts=self._counts
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
    """Equal hashes as one with all their counts, ascending; no more than are kept."""
    hashes, indices = np.unique(hashes, return_inverse=True)
    totals = np.bincount(indices, counts.astype(np.float64), minlength=len(hashes))
    kept = _below(hashes, shift)
    while kept > MOST_KEPT:
        shift += 1
        kept = _below(hashes, shift)
    return hashes[:kept].copy(), totals[:kept].clip(max=_MOST_COUNTED).astype(np.uint32), shift


def _below(hashes: Hashes, shift: int) -> int:
    """How many of ascending hashes begin with `shift` zero bits."""
    return int(np.searchsorted(hashes, np.uint64((1 << (64 - shift)) - 1), side="right"))
