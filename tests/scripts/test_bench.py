"""scripts/bench at a size that takes a moment: the numbers' names, and that they are rates."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_rate_of_the_contract_is_measured(bench: ModuleType) -> None:
    size = bench.Size(layers=1, hidden=8, vocab_size=30, batch=2, window=3)
    rates = bench.measure(size, seconds=0)
    contract = {"floor", "plain", "real", "synthetic"}
    assert {f"{name}_tokens_per_s" for name in contract} <= rates.keys()
    assert all(rate > 0 for rate in rates.values())


def test_the_size_is_that_of_the_contract(bench: ModuleType) -> None:
    size = bench.Size()
    assert (size.layers, size.hidden, size.vocab_size, size.batch, size.window) == (
        2,
        256,
        7300,
        20,
        35,
    )


def test_json_is_one_object_and_nothing_else(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = bench.Size(layers=1, hidden=8, vocab_size=30, batch=2, window=3)
    monkeypatch.setattr(bench, "Size", lambda: small)
    monkeypatch.setattr(bench, "QUICK_SECONDS", 0)
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--json"])
    bench.main()
    assert "floor_tokens_per_s" in json.loads(capsys.readouterr().out)


def test_the_floor_does_all_the_products_of_a_step(bench: ModuleType) -> None:
    """A multiply-add is two operations; each product comes back twice in the backward pass."""
    size = bench.Size(layers=2, hidden=8, vocab_size=30, batch=2, window=3)
    per_token = 2 * (size.layers * 2 * 4 * size.hidden**2 + size.hidden * size.vocab_size)
    step = bench.floor(size)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counter.get_total_flops() == 3 * size.tokens * per_token


def test_the_plain_loop_learns(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival that forgot half of its work would flatter."""
    size = bench.Size(layers=2, hidden=8, vocab_size=30, batch=2, window=3)
    ids_TB = torch.randint(30, (4, 2))
    model = bench.PlainModel(size)
    monkeypatch.setattr(bench, "PlainModel", lambda size: model)
    before = [parameter.clone() for parameter in model.parameters()]
    bench.plain(size, bench.Window(ids_TB[:-1], ids_TB[1:], False, False))()
    pairs = zip(before, model.parameters(), strict=True)
    assert all(not torch.equal(old, new) for old, new in pairs)
