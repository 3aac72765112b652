"""The quantities on which predictions of memory use depend.

Each part of a training states, beside its code, how many numbers it holds in memory. The dry run
adds them up (`sglm.train.dry_run.memory`). The unit is one float32: a number of 16 bits counts as
one half.
"""

from typing import NamedTuple

FLOAT_BYTES = 4


class MemoryBasis(NamedTuple):
    """Where a run computes, and for how many lanes.

    Attributes:
        lanes: B, the lanes of this process.
        on_cpu: whether it computes on a CPU; otherwise on a GPU.
        product_size: the size of the inputs and outputs of matrix products, in units of a float32.
    """

    lanes: int
    on_cpu: bool = True
    product_size: float = 1.0
