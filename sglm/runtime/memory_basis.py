"""Counting memory before it is taken: what the counts of all parts refer to.

Each part of a training states, beside its code, how many numbers it holds; the dry run adds them
up (`sglm.train.dry_run.memory`). Numbers are counted in units of float32's: one that is half as
large counts half.
"""

from typing import NamedTuple

FLOAT_BYTES = 4


class MemoryBasis(NamedTuple):
    """Where a run computes, and for how many lanes.

    Attributes:
        lanes: B, of this process.
        on_cpu: or else on a GPU.
        product_size: of a number that goes into a matrix product or comes out of one.
    """

    lanes: int
    on_cpu: bool = True
    product_size: float = 1.0
