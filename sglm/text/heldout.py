"""Which text is held out for validation and test, decided before anything is learned from it.

Text is divided into units: a record is one; running text is cut into blocks of consecutive lines,
because a language model carries its state from line to line and should be measured on text that
hangs together. A seeded hash ranks the units; validation takes the lowest ranks, test the highest.
Held-out text thus comes from everywhere in the corpus, and the same sources give the same splits.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sglm.errors import InputError
from sglm.text.lines import Piece
from sglm.text.sources import Source

RANKS = 1 << 16
LARGEST_BLOCK_BYTES = 1 << 16
REPORT_BYTES = 1 << 20
TRAIN, VALID, TEST = 0, 1, 2

# Called now and then with the number of bytes of text read since the last call.
OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Division:
    """Every unit's split.

    split_of_rank: `RANKS` entries, `TRAIN`, `VALID` or `TEST`.
    total_bytes, train_bytes: of text, in all sources.
    """

    sources: Sequence[Source]
    block_bytes: int
    seed: int
    split_of_rank: bytes
    total_bytes: int
    train_bytes: int

    def pieces(self, on_bytes: OnBytes) -> Iterator[tuple[int, Piece]]:
        """All pieces in order, each with its split."""
        for rank, piece in _ranked(self.sources, self.block_bytes, self.seed, on_bytes):
            yield self.split_of_rank[rank], piece

    def train_pieces(self, on_bytes: OnBytes) -> Iterator[Piece]:
        """The training text: all that may be learned from."""
        return (piece for split, piece in self.pieces(on_bytes) if split == TRAIN)


def divide(
    sources: Sequence[Source], valid: float, test: float, seed: int, on_bytes: OnBytes
) -> Division:
    """Reads everything once (which also finds what is wrong with it) and holds text out.

    Args:
        sources: read in order.
        valid, test: fractions of the bytes; 0 holds nothing out. Met up to the size of a unit, and
            by one unit at least.
        seed: another one holds other text out.
        on_bytes: reports progress.

    Raises:
        InputError: too little text to hold anything out; an empty source; see `Source.read`.
    """
    running_bytes = sum(
        (source.bytes_on_disk or 0) * (3 if source.name.endswith(".gz") else 1)
        for source in sources
        if not source.documents
    )
    # Twenty blocks or more for each split: a few long stretches would not be typical of the whole.
    smallest_share = min((share for share in (valid, test) if share > 0), default=1.0)
    block_bytes = min(LARGEST_BLOCK_BYTES, int(running_bytes * smallest_share / 20))
    bytes_of_rank = [0] * RANKS
    for rank, piece in _ranked(sources, block_bytes, seed, on_bytes):
        bytes_of_rank[rank] += byte_length(piece.text)
    total = sum(bytes_of_rank)
    split_of_rank = bytearray(RANKS)
    for split, share, ranks in (
        (VALID, valid, range(RANKS)),
        (TEST, test, range(RANKS - 1, -1, -1)),
    ):
        _hold_out(split, share * total, ranks, bytes_of_rank, split_of_rank)
    train = sum(
        size for size, split in zip(bytes_of_rank, split_of_rank, strict=True) if split == TRAIN
    )
    if train == 0:
        raise InputError(
            "too few lines or documents to hold some out for validation and test and train on the "
            "rest; give more text, or a file or 0 for --valid and --test"
        )
    return Division(sources, block_bytes, seed, bytes(split_of_rank), total, train)


def _hold_out(
    split: int,
    wanted: float,
    ranks: Iterable[int],
    bytes_of_rank: Sequence[int],
    split_of_rank: bytearray,
) -> None:
    """Takes what fits, in the order of `ranks`; if nothing fits, the smallest there is."""
    if wanted == 0:
        return
    free = [rank for rank in ranks if bytes_of_rank[rank] > 0 and split_of_rank[rank] == TRAIN]
    taken = 0
    for rank in free:
        if taken + bytes_of_rank[rank] <= wanted:
            split_of_rank[rank] = split
            taken += bytes_of_rank[rank]
    if taken == 0 and free:
        split_of_rank[min(free, key=lambda rank: bytes_of_rank[rank])] = split


def _ranked(
    sources: Iterable[Source], block_bytes: int, seed: int, on_bytes: OnBytes
) -> Iterator[tuple[int, Piece]]:
    """Every piece with its unit's rank, drawn evenly from `range(RANKS)` by unit and seed."""
    unit = 0
    unreported = 0
    for source in sources:
        source_bytes = 0
        left_in_unit = 0
        rank = 0
        within = False  # a line or record that the last piece did not finish
        for piece in source.read():
            if left_in_unit <= 0 and not within:
                digest = hashlib.blake2b(b"%d %d" % (seed, unit), digest_size=2).digest()
                rank = int.from_bytes(digest, "little")
                unit += 1
                left_in_unit = block_bytes
            size = byte_length(piece.text)
            left_in_unit = 0 if source.documents else left_in_unit - size
            within = piece.unfinished
            source_bytes += size
            unreported += size
            if unreported >= REPORT_BYTES:
                on_bytes(unreported)
                unreported = 0
            yield rank, piece
        if source_bytes == 0:
            raise InputError(f"{source.name}: empty, there is no text in it")
    on_bytes(unreported)


def byte_length(text: str) -> int:
    """The number of UTF-8 bytes."""
    return len(text) if text.isascii() else len(text.encode())
