"""The quantities on which predictions of memory use depend.

Each part of a training run has, beside its code, a function that says how many numbers it holds in
memory. The dry run adds them up (`sglm.train.dry_run.memory`). The unit is one float32: a number of
16 bits counts as one half.
"""

from typing import NamedTuple

FLOAT_BYTES = 4


class MemoryBasis(NamedTuple):
    """The lanes and the device of a run.

    Attributes:
        lanes: Number of lanes of this process, B.
        on_cpu: Whether it computes on a CPU; otherwise on a GPU.
        product_size: Size of each number in the inputs and outputs of products, in float32 units.
    """

    lanes: int
    on_cpu: bool = True
    product_size: float = 1.0
