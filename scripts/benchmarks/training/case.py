"""What scripts/bench measures: a size, a place, a text, and what an arm is."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sglm.optim.precision import make_precision

FEWEST_WINDOWS = 8  # that are timed as one
EPOCH_WINDOWS = 64  # whole blocks of every arm; after them the text starts again

Ids = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Size:
    """What is trained. Embedding and layers are equally wide, the embedding is tied."""

    layers: int = 2
    hidden: int = 256
    vocab_size: int = 7300
    batch: int = 20
    window: int = 35

    @property
    def tokens(self) -> int:
        """Predictions of one window."""
        return self.batch * self.window

    @property
    def parameters(self) -> int:
        """Weights of the language model, biases left out."""
        return self.hidden * (self.vocab_size + 8 * self.layers * self.hidden)

    def __str__(self) -> str:
        return (
            f"{self.layers} × {self.hidden}, V = {self.vocab_size:,}, B = {self.batch},"
            f" T = {self.window}"
        )


@dataclass(frozen=True)
class Place:
    """Where, and in which type the products run: as `--device` and `--precision` say it.

    Attributes:
        tf32: round float32 products to TF32 on a GPU, all or none. (Unless told otherwise torch,
            and so `sglm train`, rounds those of LSTMs and no others.)
        cuda_graph: as `train.cuda_graph`.
    """

    device: str = "cpu"
    precision: str = "fp32"
    tf32: bool = False
    cuda_graph: bool = False

    @property
    def compute_dtype(self) -> torch.dtype:
        return make_precision(self.precision, torch.device(self.device)).compute_dtype


class Patch(NamedTuple):
    """A function, named by the object that holds it, and the part of a step that it belongs to."""

    owner: object
    name: str
    part: str


class Arm(Protocol):
    """Trains on one window at each `step`: in its own turn, or in the turn that is given.

    Attributes:
        block: windows that are timed as one and in which the turn must not change: whole stretches
            from one reading ahead to the next, which cost unlike the windows between.
    """

    block: int

    def step(self, turn: str | None = None) -> None: ...

    def patches(self) -> list[Patch]: ...


def random_text(size: Size, folder: Path, tokens: int | None = None) -> Ids:
    """Token ids on the disk, memory-mapped as a token store's are; by default just so many that
    every lane has `EPOCH_WINDOWS` windows."""
    kind = np.uint16 if size.vocab_size <= 2**16 else np.uint32
    left = EPOCH_WINDOWS * size.tokens if tokens is None else tokens
    generator = np.random.default_rng(0)
    path = folder / "text.bin"
    with path.open("wb") as file:
        while left > 0:  # in pieces, so that a long text is never in memory as a whole
            piece = min(left, 2**20)
            file.write(generator.integers(size.vocab_size, size=piece, dtype=kind).tobytes())
            left -= piece
    ids_N: Ids = np.memmap(path, dtype=kind, mode="r")
    return ids_N
