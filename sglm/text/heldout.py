"""Chooses the text that is held out for validation and test, before a vocabulary is learned.

Text is divided into units: a record is one; running text is cut into blocks of consecutive lines,
because a language model carries its state from line to line and should be measured on connected
text. Each unit draws a number by a seeded hash; validation takes the lowest numbers, test the
highest. Held-out text thus comes from everywhere in the corpus.

The choice depends only on the lines and records, their order, the fractions and the seed. It does
not depend on file names (except that they order the files of a folder), on how lines are divided
among files, on compression, or on line ends (LF or CR LF).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sglm.errors import InputError
from sglm.text.lines import Piece
from sglm.text.sources import Source, pieces_in_turn

DRAWS = 1 << 16  # numbers are drawn from 0 to DRAWS - 1
LARGEST_BLOCK_BYTES = 1 << 16
COUNTED_BYTES = 1 << 20  # the number of bytes read between two calls of `OnBytes`
TRAIN, VALID, TEST = 0, 1, 2

# Called regularly, with the number of bytes of text read since the last call.
OnBytes = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Division:
    """The division of a text into splits.

    Attributes:
        sources: The text, in reading order.
        block_bytes: Size of a block of running text in bytes; a block ends with a whole line.
        seed: Seed of the random draws.
        split_of_draw: The split of each number that can be drawn: `DRAWS` entries, each `TRAIN`,
            `VALID` or `TEST`.
        total_bytes, train_bytes: Size of the whole text and of the training text in bytes of
            UTF-8; each line end counts as one byte.
    """

    sources: Sequence[Source]
    block_bytes: int
    seed: int
    split_of_draw: bytes
    total_bytes: int
    train_bytes: int

    def pieces(self, on_bytes: OnBytes) -> Iterator[tuple[int, Piece]]:
        """Yields all pieces in order, each with its split."""
        drawn = _drawn_pieces(
            self.sources, block_bytes=self.block_bytes, seed=self.seed, on_bytes=on_bytes
        )
        for draw, piece in drawn:
            yield self.split_of_draw[draw], piece

    def train_pieces(self, on_bytes: OnBytes) -> Iterator[Piece]:
        """Returns the training text: everything that may be learned from."""
        return (piece for split, piece in self.pieces(on_bytes) if split == TRAIN)


def divide(
    sources: Sequence[Source], *, valid: float, test: float, seed: int, on_bytes: OnBytes
) -> Division:
    """Reads all sources, which finds any errors in them, and divides them into splits.

    Args:
        sources: The text, read in order.
        valid, test: Fractions of the bytes; 0 holds nothing out. The size of a split differs from
            its fraction by up to one unit; a split has at least one unit.
        seed: Seed of the random draws.
        on_bytes: Function that is called with the progress.

    Raises:
        InputError: There is too little text to hold anything out, or a source is empty; see also
            `Source.read`.
    """
    running_bytes = 0
    if valid or test:
        running = (source for source in sources if not source.documents)
        running_bytes = sum(_size(piece) for source in running for piece in source.read())
    # At least twenty blocks for each split: a few long blocks would not represent the whole text.
    smallest_share = min((share for share in (valid, test) if share > 0), default=1.0)
    block_bytes = min(LARGEST_BLOCK_BYTES, int(running_bytes * smallest_share / 20))
    bytes_of_draw = [0] * DRAWS
    drawn = _drawn_pieces(sources, block_bytes=block_bytes, seed=seed, on_bytes=on_bytes)
    for draw, piece in drawn:
        bytes_of_draw[draw] += _size(piece)
    total = sum(bytes_of_draw)
    if total == 0:
        raise InputError(f"{sources[0].name}: contains no text, nor do the files after it")
    split_of_draw = bytearray(DRAWS)
    for split, share, draws in (
        (VALID, valid, range(DRAWS)),
        (TEST, test, range(DRAWS - 1, -1, -1)),
    ):
        _hold_out(
            split,
            wanted_bytes=share * total,
            draws=draws,
            bytes_of_draw=bytes_of_draw,
            split_of_draw=split_of_draw,
        )
    train = sum(
        size for size, split in zip(bytes_of_draw, split_of_draw, strict=True) if split == TRAIN
    )
    if train == 0:
        raise InputError(
            "too few lines or documents to hold some out for validation and test and train on the "
            "rest; give more text, break up a line that holds the whole text (fold -s), or give a"
            " file or 0 for --valid and --test"
        )
    return Division(
        sources=sources,
        block_bytes=block_bytes,
        seed=seed,
        split_of_draw=bytes(split_of_draw),
        total_bytes=total,
        train_bytes=train,
    )


def _hold_out(
    split: int,
    *,
    wanted_bytes: float,
    draws: Iterable[int],
    bytes_of_draw: Sequence[int],
    split_of_draw: bytearray,
) -> None:
    """Goes through `draws` in order and assigns the units of each draw to `split` if they still
    fit into `wanted_bytes`; if none fit, assigns the units of the smallest draw."""
    if wanted_bytes == 0:
        return
    free = [draw for draw in draws if bytes_of_draw[draw] > 0 and split_of_draw[draw] == TRAIN]
    taken_bytes = 0
    for draw in free:
        if taken_bytes + bytes_of_draw[draw] <= wanted_bytes:
            split_of_draw[draw] = split
            taken_bytes += bytes_of_draw[draw]
    if taken_bytes == 0 and free:
        split_of_draw[min(free, key=lambda draw: bytes_of_draw[draw])] = split


def _drawn_pieces(
    sources: Sequence[Source], *, block_bytes: int, seed: int, on_bytes: OnBytes
) -> Iterator[tuple[int, Piece]]:
    """Yields every piece with the number drawn for its unit, uniformly from `range(DRAWS)`."""
    unit = draw = left_in_unit = 0
    uncounted_bytes = 0
    within = False  # whether the last piece ended inside a line or record
    silent = {source.name for source in sources if not source.from_folder}
    for source, piece in pieces_in_turn(sources):
        if not within and (left_in_unit <= 0 or source.documents):
            digest = hashlib.blake2b(b"%d %d" % (seed, unit), digest_size=2).digest()
            draw = int.from_bytes(digest, "little")
            unit += 1
            left_in_unit = block_bytes
        size = _size(piece)
        left_in_unit = 0 if source.documents else left_in_unit - size
        within = piece.unfinished
        if size:
            silent.discard(source.name)
        uncounted_bytes += size
        if uncounted_bytes >= COUNTED_BYTES:
            on_bytes(uncounted_bytes)
            uncounted_bytes = 0
        yield draw, piece
    if silent:
        raise InputError(f"{min(silent)}: empty, it contains no text")
    on_bytes(uncounted_bytes)


def _size(piece: Piece) -> int:
    """Returns the size of a piece in bytes of UTF-8; the end of a line counts as one byte."""
    size = byte_length(piece.text)
    if piece.ends_document or piece.unfinished:
        return size
    if piece.text.endswith("\n"):
        return size - piece.text.endswith("\r\n")
    return size + 1


def byte_length(text: str) -> int:
    """Returns the number of bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
