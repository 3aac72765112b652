"""Parts that train on Penn Treebank, as `sglm train` does: perplexity over epochs.

They train the recipe `ptb`, a model of the size of AWD-LSTM; `learning` takes more lanes or fewer
units if its epochs would not fit into the time.
"""

import json
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.benchmarks.training.case import FEWEST_WINDOWS
from scripts.gpu_visit.cells import Cell, Context, Found, free_memory
from scripts.gpu_visit.speed import RECORDED_AFTER
from sglm.config import Config, load_config
from sglm.errors import Stopped
from sglm.optim.precision import make_precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.runtime.device import make_deterministic
from sglm.text.store import TokenStore
from sglm.train.build import build_batcher, build_decision_rule, build_learner, token_counts
from sglm.train.loop import train
from sglm.train.step import train_step
from sglm.train.validate import validate

RECIPE = "ptb"
CYCLES = [5.0, 5.0, 10.0, 20.0]  # epochs; the first four cycles of the alternating paper
# The slowest first. With more lanes, an epoch has fewer, wider steps: it is faster and learns less.
SIZES = {
    "20 lanes": [],
    "40 lanes": ["train.batch=40"],
    "80 lanes": ["train.batch=80"],
    "80 lanes, 650 units": ["train.batch=80", "model.hidden=650"],
}
ARMS = {
    "alternating": ("alternating", "bf16"),
    "restarts only": ("real", "bf16"),
    "synthetic only": ("synthetic", "bf16"),
    "restarts only, fp32": ("real", "fp32"),
}
_TINY = ["model.layers=1", "model.hidden=8", "model.embedding=8", "train.batch=2", "train.window=4"]
# A validation reads its text in one piece, step by step: on a GPU it takes longer than an epoch.
VALIDATED = 5  # epochs from one validation to the next
_USED = 0.85  # share of the time left; steps may be slower than in the short timing


def learning(context: Context) -> Iterator[Cell]:
    """Yields a cell that finds the size, then one for each arm within its share of the time."""
    fits: Found = dict(context.earlier.get("fit", {}))

    def fit() -> Found:
        fits.update(_fit(context))
        return fits

    yield Cell(name="fit", measure=fit)
    for index, arm in enumerate(ARMS):
        share = max(1, 3 - index)  # thirds of the time; the fourth takes what is left
        yield Cell(name=arm, measure=partial(_arm, context, arm, fits=fits, share=share))


def _fit(context: Context) -> Found:
    """Finds the first size whose arms fit into the time; if none does, takes the last."""
    store, timed = TokenStore.open(_data(context)), dict[str, Any]()
    budget = _USED * context.seconds_left / (3 * sum(CYCLES))
    for size, overrides in SIZES.items():
        try:
            timed[size] = _epoch_seconds(_config(context, overrides), store, context.device)
        except RuntimeError as error:  # out of memory
            timed[size] = str(error)[:200]
        free_memory()
        if isinstance(timed[size], float) and timed[size] <= budget:
            break
    if not any(isinstance(each, float) for each in timed.values()):
        raise RuntimeError(f"no size could be timed: {timed}")
    return {"size": size, "timed": timed}


def _epoch_seconds(config: Config, store: TokenStore, device: str) -> float:
    """Estimates the seconds of an epoch that injects, its share of a validation included."""
    place = make_precision("auto", torch.device(device))
    with place.device:  # weights are drawn here: a CPU would take longer than the rest
        learner = build_learner(config, token_counts(store), place)
    batcher, rule = build_batcher(config, store), build_decision_rule(config)
    plan, steps = StepPlan(lr_factor=1.0, mode=Mode.SYNTHETIC, cycle=1), 0

    def seconds(count: int) -> float:
        nonlocal steps
        start = time.monotonic()
        for _ in range(count):
            window = batcher.at(steps).to(place.device)
            decision = rule.decide(steps, plan, window)
            train_step(learner, window, decision, learning_rate=learner.rate(plan))
            steps += 1
        torch.stack([p.sum() for p in learner.model.parameters()]).tolist()  # waits for the device
        return time.monotonic() - start

    block = max(FEWEST_WINDOWS, batcher.stretch)  # whole stretches
    seconds(block * RECORDED_AFTER)
    step_seconds = seconds(block) / block
    start = time.monotonic()
    validate(learner, store, should_stop=lambda: False)
    validation = time.monotonic() - start
    return batcher.steps_per_epoch * step_seconds + validation / VALIDATED


def _arm(context: Context, arm: str, *, fits: Found, share: int) -> Found:
    mode, precision = ARMS[arm]
    size = fits.get("size", "80 lanes")
    overrides = [*SIZES[size], f"schedule.mode={mode}", f"schedule.cycles={CYCLES}"]
    batcher = build_batcher(_config(context, overrides), TokenStore.open(_data(context)))
    overrides += [f"train.evaluate_every_steps={VALIDATED * batcher.steps_per_epoch}"]
    seconds = (context.seconds_left - 5) / share
    config = _config(context, overrides)
    facts = {"arm": arm, "size": size, "precision": precision}
    precision = "fp32" if context.rehearsing else precision
    name = f"{arm} {size}"  # a run is not continued with another size
    return facts | _trained(context, config, name=name, precision=precision, seconds=seconds)


def best(context: Context) -> Iterator[Cell]:
    """Yields a cell that trains the unchanged recipe."""

    def measure() -> Found:
        config, seconds = _config(context, []), context.seconds_left - 10
        precision = "fp32" if context.rehearsing else "bf16"
        return _trained(context, config, name="best", precision=precision, seconds=seconds)

    yield Cell(name="ptb", measure=measure)


def deterministic(context: Context) -> Iterator[Cell]:
    """Yields cells that each make two short runs and compare their weights bit by bit."""
    for precision in ("fp32",) if context.rehearsing else ("bf16", "fp32"):
        yield Cell(name=precision, measure=partial(_same_twice, context, precision))


def _same_twice(context: Context, precision: str) -> Found:
    make_deterministic(torch.device(context.device))
    overrides = ["schedule.unit=steps", "schedule.cycles=[20, 40]"]
    config, files, found = _config(context, overrides), [], dict[str, Any]()
    for name in ("once", "again"):
        found[name] = _trained(
            context,
            config,
            name=f"{precision} {name}",
            precision=precision,
            seconds=context.seconds_left,
        )
        run = _run(context, f"{precision} {name}")
        files.append((run / "last" / "model.safetensors").read_bytes())
    seconds = [found[name]["train_seconds"] for name in ("once", "again")]
    return {"same_bits": files[0] == files[1], "train_seconds": seconds}


def _trained(
    context: Context, config: Config, *, name: str, precision: str, seconds: float
) -> Found:
    """Trains to the end or until the time is up, and returns the curve of validations."""
    end, run = time.monotonic() + seconds, _run(context, name)
    run.parent.mkdir(parents=True, exist_ok=True)
    chosen = make_precision(precision, torch.device(context.device))
    stopped: str | None = None
    with (run.parent / f"{run.name}.log").open("a", encoding="utf-8") as console:
        try:
            train(
                config,
                TokenStore.open(_data(context)),
                run,
                precision=chosen,
                console=console,
                stop_signal=lambda: signal.SIGTERM if time.monotonic() > end else None,
            )
        except Stopped as error:
            stopped = str(error).partition(" with everything")[0]
    return {"stopped": stopped, **curve(run / "metrics.jsonl")}


def curve(path: Path) -> Found:
    """Reads the perplexity, step and mode of every validation, and the seconds of the run."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""  # no validation yet
    lines = [json.loads(line) for line in text.splitlines()]
    return {
        "token_ppl": [round(line["token_ppl"], 3) for line in lines],
        "steps": [line["step"] for line in lines],
        "modes": [line["mode"] for line in lines],
        "train_seconds": round(lines[-1]["seconds"], 1) if lines else 0.0,
    }


def _run(context: Context, name: str) -> Path:
    return context.work / "runs" / name.replace(" ", "-").replace(",", "")


def _config(context: Context, overrides: list[str]) -> Config:
    if context.rehearsing:  # four updates, and a text of a few lines
        overrides = [each for each in overrides if not each.startswith(("train.b", "model."))]
        overrides += [*_TINY, "schedule.unit=steps", "schedule.cycles=[2, 2]"]
    return load_config(RECIPE, overrides)


def _data(context: Context) -> Path:
    if context.data is not None:
        return context.data
    if context.rehearsing:
        return _rehearsed_store(context.work / "store")
    raise FileNotFoundError("no token store of Penn Treebank: give --data STORE, made by sglm prep")


def _rehearsed_store(folder: Path) -> Path:
    from sglm.text.prepare import StoreSettings, prepare

    if not (folder / "meta.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        text = folder.parent / "rehearsed.txt"
        text.write_text("a b c d e\n" * 60, encoding="utf-8")
        settings = StoreSettings(tokenizer="word", valid=0.2, test=0.2)
        prepare([str(text)], folder, settings)
    return folder
