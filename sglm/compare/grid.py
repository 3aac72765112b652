"""The grid of a comparison: every variant with every seed, and the part that one call runs."""

from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """One cell of the grid: one run."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.variant} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Variants × seeds.

    Attributes:
        variants: names in `VARIANTS`.
        seeds: of the runs.
        shard: `(i, n)`: the i-th of n parts of the grid, counted from 1.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    shard: tuple[int, int] = (1, 1)

    @property
    def cells(self) -> list[Cell]:
        """All runs, seed by seed: a grid that is stopped early has whole pairs."""
        return [Cell(variant, seed) for seed in self.seeds for variant in self.variants]

    @property
    def own_cells(self) -> list[Cell]:
        """Those of the shard, in their order.

        Dealt out variant by variant, so that shards differ by one run at most, in all and of each
        variant; with as many shards as seeds, each has whole seeds.
        """
        part, parts = self.shard
        dealt = sorted(self.cells, key=lambda cell: self.variants.index(cell.variant))
        own = set(dealt[part - 1 :: parts])
        return [cell for cell in self.cells if cell in own]
