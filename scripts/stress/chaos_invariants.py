"""Checks of what must be the same after any number of kills, and must hold right after each."""

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sglm.errors import SglmError
from sglm.model.folder import load_weights
from sglm.storage.checkpoint import load_checkpoint
from sglm.text.store import TokenStore
from sglm.text.tokenizer import load_tokenizer

# Times and memory differ from run to run, so they are not compared.
_WALL_CLOCK = {"seconds", "seconds_mean", "seconds_ratio", "peak_memory_mb"}
_LEFT_ASIDE = re.compile(r"\.(partial|aside|tmp)$|\.prep-")
_CHECKPOINT = re.compile(r"step-(\d+)")


def store_differences(expected: Path, found: Path) -> Iterator[str]:
    """Compares two token stores: every file, byte by byte."""
    yield from _different_files(expected, found, [name.name for name in expected.iterdir()])
    yield from _leftovers(found.parent)


def store_damage(out: Path, before: Path | None) -> Iterator[str]:
    """Checks that after a kill there is no store or a whole one: that of `before`, or a new one."""
    if not (out / "meta.json").exists():
        if before is not None and not _moved_aside(out):
            yield f"{out}: the store that was to be replaced is gone"
        return
    try:
        TokenStore.open(out)
    except SglmError as error:
        yield f"a store that looks complete is not: {error}"


def _moved_aside(out: Path) -> bool:
    """Returns whether the kill fell between two renames: the old store is complete, but renamed."""
    return any((path / "meta.json").exists() for path in out.parent.glob(f".{out.name}.prep-*-old"))


def run_differences(expected: Path, found: Path) -> Iterator[str]:
    """Compares finished runs: weights, optimizers, random numbers by byte; metrics by number."""
    wanted, there = _comparable_files(expected), _comparable_files(found)
    if other := wanted ^ there:
        yield f"{found}: other files: {', '.join(sorted(map(str, other)))}"
    yield from _different_files(expected, found, [name for name in wanted if _is_reproduced(name)])
    if _metrics(expected) != _metrics(found):
        yield f"{found}/metrics.jsonl differs"
    left, right = curves(expected), curves(found)
    for tag in sorted(left.keys() | right.keys()):
        if left.get(tag) != right.get(tag):
            yield f"{found}: curve {tag}: {_first_difference(left.get(tag), right.get(tag))}"
    yield from _leftovers(found)


def run_damage(out: Path) -> Iterator[str]:
    """Checks that after a kill every model in its place and `checkpoints/latest` can be loaded."""
    if not out.is_dir():
        return
    try:
        found = load_checkpoint(out / "checkpoints")
        yield from () if found is None else found.damaged.values()
    except SglmError as error:
        yield str(error)
    for model in (out / "model", out / "last", *out.glob("snapshots/*")):
        if not model.is_dir() or _LEFT_ASIDE.search(model.name):
            continue
        try:
            load_weights(model)
            load_tokenizer(model)
        except (SglmError, OSError) as error:
            yield f"{model}: {error}"


def latest_step(out: Path) -> int:
    """Returns the step of the checkpoint that `latest` points to; 0 without one."""
    latest = out / "checkpoints" / "latest"
    match = _CHECKPOINT.search(os.readlink(latest)) if latest.is_symlink() else None
    return int(match[1]) if match and latest.exists() else 0


def comparison_differences(expected: Path, found: Path) -> Iterator[str]:
    """Compares finished comparisons: their results except for the costs, and each run."""
    if _without_costs(read_json(expected / "results.json")) != _without_costs(
        read_json(found / "results.json")
    ):
        yield f"{found}/results.json differs"
    yield from _different_files(expected, found, ["curves.png"])
    for run in sorted((expected / "runs").iterdir()):
        if run.is_dir():
            yield from run_differences(run, found / "runs" / run.name)
    for log in (found / "runs").glob("*.log"):
        if "Traceback" in log.read_text(encoding="utf-8"):
            yield f"{log}: contains a traceback"
    yield from _leftovers(found)


def comparison_damage(out: Path) -> Iterator[str]:
    """Checks each run after a kill."""
    for run in out.glob("runs/*"):
        yield from run_damage(run)


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns `tag: [(step, value), …]`, as TensorBoard reads them."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every purge
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
        if not tag.startswith("perf/")
    }


def read_json(path: Path) -> Any:
    """Reads a file; None if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _comparable_files(run: Path) -> set[str]:
    """Returns all files except event files and the checkpoints before the last.

    The number of event files depends on the number of starts, and a stop may have saved earlier
    checkpoints at other steps.
    """
    return {
        str(path.relative_to(run))
        for folder in (run, *run.glob("checkpoints/latest"))
        for path in folder.rglob("*")
        if path.is_file()
        and not path.relative_to(run).match("tensorboard/*")
        and not path.relative_to(run).match("checkpoints/step-*/*")
    }


def _is_reproduced(name: str) -> bool:
    """Returns whether a file must be equal by byte; logs, records and state.json contain times."""
    within = Path(name).parts[0] in ("model", "last", "snapshots", "config.toml")
    return within or name.endswith(".safetensors")


def _different_files(expected: Path, found: Path, names: list[str]) -> Iterator[str]:
    for name in sorted(names):
        if not (found / name).is_file():
            yield f"{found / name}: missing"
        elif (expected / name).read_bytes() != (found / name).read_bytes():
            yield f"{found / name}: differs from {expected / name}"


def _metrics(run: Path) -> list[Any]:
    text = (run / "metrics.jsonl").read_text(encoding="utf-8")
    return [_without_costs(json.loads(line)) for line in text.splitlines()]


def _without_costs(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _without_costs(tree[key]) for key in tree if key not in _WALL_CLOCK}
    return tree


def _first_difference(left: list[Any] | None, right: list[Any] | None) -> str:
    for one, other in zip(left or [], right or [], strict=False):
        if one != other:
            return f"{other} instead of {one}"
    return f"{len(right or [])} points instead of {len(left or [])}"


def _leftovers(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if _LEFT_ASIDE.search(path.name):
            yield f"{path}: was left behind"
