"""The grid of a comparison: every variant with every seed, divided into shards."""

from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell of the grid, which is one run."""

    variant: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.variant} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The grid variants × seeds.

    Attributes:
        variants: Names of variants in `VARIANTS`.
        seeds: Seeds of the runs.
        shard: `(i, n)` for the i-th of n parts of the grid, counted from 1.
    """

    variants: tuple[str, ...]
    seeds: tuple[int, ...]
    shard: tuple[int, int] = (1, 1)

    @property
    def cells(self) -> list[Cell]:
        """All runs, seed by seed, so that a grid that is stopped early has complete pairs."""
        return [Cell(variant, seed) for seed in self.seeds for variant in self.variants]

    @property
    def own_cells(self) -> list[Cell]:
        """The runs of this shard, in the order of `cells`.

        They are dealt out variant by variant, so that shards differ by at most one run, in all and
        for each variant. With as many shards as seeds, each shard has complete seeds.
        """
        part, parts = self.shard
        dealt = sorted(self.cells, key=lambda cell: self.variants.index(cell.variant))
        own = set(dealt[part - 1 :: parts])
        return [cell for cell in self.cells if cell in own]
