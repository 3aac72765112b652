"""The sizes, places, texts and arms that scripts/bench measures."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sglm.optim.precision import make_precision

FEWEST_WINDOWS = 8  # of a block, which is timed as a whole
EPOCH_WINDOWS = 64  # of each lane: whole blocks of every arm; then the text starts again

Ids = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True)
class Size:
    """The size of a training. The embedding is tied and as wide as the layers."""

    layers: int = 2
    hidden: int = 256
    vocab_size: int = 7300
    batch: int = 20
    window: int = 35

    @property
    def tokens(self) -> int:
        """The number of predictions in one window."""
        return self.batch * self.window

    @property
    def parameters(self) -> int:
        """The number of weights of the language model, without biases."""
        return self.hidden * (self.vocab_size + 8 * self.layers * self.hidden)

    def __str__(self) -> str:
        return (
            f"{self.layers} × {self.hidden}, V = {self.vocab_size:,}, B = {self.batch},"
            f" T = {self.window}"
        )


@dataclass(frozen=True)
class Place:
    """The device, and the type in which products run, as in `--device` and `--precision`.

    Attributes:
        tf32: Whether a GPU rounds all float32 products to TF32, or none. (By default torch, and so
            `sglm train`, rounds only those of LSTMs.)
        cuda_graph: As `train.cuda_graph`.
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
    """A way to train, one window per `step`, in its own turn or in a given one.

    Attributes:
        block: Number of windows that are timed together and in which the turn must not change:
            whole stretches, because the windows at which text is read ahead cost more than others.
    """

    block: int

    def step(self, turn: str | None = None) -> None: ...

    def patches(self) -> list[Patch]: ...


def random_text(size: Size, folder: Path, tokens: int | None = None) -> Ids:
    """Returns random token ids, in a file that is memory-mapped as those of a token store are.

    Args:
        size: Gives the vocabulary, and the default length: `EPOCH_WINDOWS` windows in every lane.
        folder: Folder of the file.
        tokens: Number of tokens. None: the default length.
    """
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
