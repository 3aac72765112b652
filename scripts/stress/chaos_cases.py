"""The cases that are killed: small runs of `sglm prep`, `train` and `compare`, each a command."""

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.stress import chaos_invariants as invariants

# Every part of a run's state is in use: dropout, a synthesizer with a memory of its own, cycles of
# both modes, evaluations and logs that do not fall on checkpoints.
CONFIG = """
[model]
layers = 2
hidden = 8
[dropout]
input = 0.1
between = 0.1
output = 0.1
weight = 0.1
[train]
batch = 4
window = 5
log_every_steps = 3
evaluate_every_steps = 6
checkpoint_every_steps = 4
[optimizer]
learning_rate = 0.02
[synthesizer]
{synthesizer}
hidden = 8
factor = 0.9
[schedule]
unit = "steps"
cycles = {cycles}
"""


@dataclass(frozen=True)
class Case:
    """A command, and the checks of its output.

    Attributes:
        what: The command's name.
        name: The case's name.
        arguments: Returns the arguments of sglm; the output goes to `out` in the given folder.
        differences: Yields the differences between an undisturbed output and another one.
        damage: Yields the damage in an output right after a kill.
        again: The exit status of one more start after the command has finished.
        set_up: Fills a fresh folder with the files that the first start finds.
    """

    what: str
    name: str
    arguments: Callable[[Path], list[str]]
    differences: Callable[[Path, Path], Iterator[str]]
    damage: Callable[[Path], Iterator[str]]
    again: int = 0
    set_up: Callable[[Path], object] = lambda folder: None


def make_text(path: Path, lines: int) -> None:
    """Writes sentences of a tiny language: subject, verb, object."""
    draw = random.Random(0)
    subjects = ("the cat", "a dog", "all birds", "no fish", "the old man")
    verbs = ("sees", "hears", "wants", "fears")
    objects = ("the moon", "rain", "a song", "nothing", "the house")
    made = (
        f"{draw.choice(subjects)} {draw.choice(verbs)} {draw.choice(objects)} ."
        for _ in range(lines)
    )
    path.write_text("\n".join(made) + "\n", encoding="utf-8")


def prep_case(text: Path, old: Path, tokenizer: str, force: bool) -> Case:
    """Returns a case that makes a store of `text`; with `force`, it replaces the store `old`."""

    def set_up(folder: Path) -> None:
        if force:
            shutil.copytree(old, folder / "out")

    def arguments(folder: Path) -> list[str]:
        forced = ["--force"] if force else []
        return ["prep", str(text), "--out", str(folder / "out"), "--tokenizer", tokenizer, *forced]

    def damage(out: Path) -> Iterator[str]:
        return invariants.store_damage(out, old if force else None)

    name = f"{tokenizer}{' --force' * force}"
    again = 0 if force else 2
    return Case("prep", name, arguments, invariants.store_differences, damage, again, set_up)


def train_case(store: Path, config: Path, synthesizer: str) -> Case:
    config.write_text(CONFIG.format(synthesizer=synthesizer, cycles=[8, 8, 10]), encoding="utf-8")

    def arguments(folder: Path) -> list[str]:
        places = ["--data", str(store), "--out", str(folder / "out")]
        return ["train", str(config), *places, "--device", "cpu", "--precision", "fp32"]

    return Case("train", config.stem, arguments, invariants.run_differences, invariants.run_damage)


def compare_case(store: Path, config: Path) -> Case:
    config.write_text(
        CONFIG.format(synthesizer='kind = "mlp"\nauxiliary = true', cycles=[5, 5]), encoding="utf-8"
    )

    def arguments(folder: Path) -> list[str]:
        places = ["--data", str(store), "--out", str(folder / "out")]
        which = ["--variants", "bptt,alternating", "--seeds", "0", "--device", "cpu"]
        return ["compare", str(config), *places, *which, "--precision", "fp32"]

    return Case(
        "compare",
        config.stem,
        arguments,
        invariants.comparison_differences,
        invariants.comparison_damage,
    )
