"""The grid and its shards."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sglm.compare.grid import Grid
from sglm.compare.variants import VARIANTS


@given(
    variants=st.lists(st.sampled_from(list(VARIANTS)), min_size=1, unique=True),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=7, unique=True),
    shards=st.integers(1, 12),
)
def test_shards_are_disjoint_complete_and_balanced(
    variants: list[str], seeds: list[int], shards: int
) -> None:
    grid = Grid(variants=tuple(variants), seeds=tuple(seeds))
    parts = [replace(grid, shard=(part, shards)).own_cells for part in range(1, shards + 1)]
    assert Counter(cell for part in parts for cell in part) == Counter(grid.cells)
    assert len(grid.cells) == len(variants) * len(seeds)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    for variant in variants:
        of_variant = [sum(cell.variant == variant for cell in part) for part in parts]
        assert max(of_variant) - min(of_variant) <= 1


def test_with_a_shard_for_each_seed_a_shard_has_whole_seeds() -> None:
    grid = Grid(variants=("bptt", "dni", "noise"), seeds=(4, 5))
    assert {cell.seed for cell in replace(grid, shard=(1, 2)).own_cells} == {4}
    assert {cell.seed for cell in replace(grid, shard=(2, 2)).own_cells} == {5}
