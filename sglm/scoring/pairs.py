"""Minimal pairs: how often the acceptable sentence is the more probable one (BLiMP: Warstadt et
al. 2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs for English", sec. 4)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sglm.errors import InputError, did_you_mean
from sglm.text.records import checked_text, read_json_lines

DEFAULT_GROUPS = ("UID", "field")


class Pair(NamedTuple):
    """Two sentences, of which the first is acceptable, and which differ only in what decides that.

    groups: `(field, value)` of the record, for the fields that group.
    where: file and line, for error messages.
    """

    good: str
    bad: str
    groups: tuple[tuple[str, str], ...] = ()
    where: str = ""


@dataclass(kw_only=True)
class Accuracy:
    """The number of pairs, and of those whose good sentence is more probable; a tie is a half."""

    n: int = 0
    right: int = 0
    ties: int = 0

    @property
    def accuracy(self) -> float:
        """From 0 to 1; one half is chance."""
        return (self.right + self.ties / 2) / self.n

    def count(self, good: float, bad: float) -> None:
        """Counts one more pair, given the log-probabilities of its sentences; equal ones tie."""
        self.n += 1
        self.right += good > bad
        self.ties += good == bad

    def to_json(self) -> dict[str, Any]:
        """As `sglm pairs --json` prints it."""
        return {"n": self.n, "accuracy": self.accuracy, "ties": self.ties}


@dataclass(kw_only=True)
class PairResults:
    """All pairs, and the groups in the order of their fields, by name."""

    overall: Accuracy = field(default_factory=Accuracy)
    by_field: dict[str, dict[str, Accuracy]] = field(default_factory=dict)

    def count(self, pair: Pair, good: float, bad: float) -> None:
        """One more pair and its log-probabilities."""
        self.overall.count(good, bad)
        for name, value in pair.groups:
            self.by_field.setdefault(name, {}).setdefault(value, Accuracy()).count(good, bad)

    def groups(self) -> dict[str, Accuracy]:
        """By value; where two fields have the same value, `field=value` for the second."""
        named: dict[str, Accuracy] = {}
        for name, values in self.by_field.items():
            for value in sorted(values):
                named[f"{name}={value}" if value in named else value] = values[value]
        return named

    def to_json(self) -> dict[str, Any]:
        """The object that `sglm pairs --json` prints."""
        groups = {name: accuracy.to_json() for name, accuracy in self.groups().items()}
        return {"groups": groups, **self.overall.to_json()}


def find_pair_files(sources: Sequence[Path]) -> list[Path]:
    """The files themselves, and the .jsonl files in folders.

    Raises:
        InputError: nothing there, or a folder without such files.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(source.rglob("*.jsonl"))
            if not inside:
                raise InputError(f"{source}: no .jsonl file in this folder")
            files += inside
        elif source.exists() or str(source) == "-":
            files.append(source)
        else:
            raise InputError(f"{source}: no such file or folder")
    return files


def read_pairs(
    files: Sequence[Path], *, good: str, bad: str, groups: Sequence[str] | None
) -> Iterator[Pair]:
    """The pairs of JSON-lines files, one by one.

    Args:
        files: one object a line.
        good, bad: the fields of the sentences.
        groups: fields whose values group; None: `DEFAULT_GROUPS`, as far as a record has them.

    Raises:
        InputError: a record without these fields, or with something else than text in them.
    """
    for path in files:
        for where, record in read_json_lines(path):
            if not isinstance(record, dict):
                raise InputError(f"{where}: not an object with fields {good!r} and {bad!r}")
            wanted = [g for g in DEFAULT_GROUPS if g in record] if groups is None else groups
            yield Pair(
                _text(record, good, where=where, option="--good"),
                _text(record, bad, where=where, option="--bad"),
                tuple((name, _value(record, name, where)) for name in dict.fromkeys(wanted)),
                where,
            )


def _text(record: dict[str, Any], name: str, *, where: str, option: str) -> str:
    text = checked_text(_field(record, name, where=where, option=option), name, where)
    if not text.strip():
        raise InputError(f"{where}: the field {name!r} is empty")
    return text


def _value(record: dict[str, Any], name: str, where: str) -> str:
    value = _field(record, name, where=where, option="--group")
    if isinstance(value, dict | list) or value is None:
        raise InputError(f"{where}: the field {name!r} cannot group: it is {type(value).__name__}")
    return str(value)


def _field(record: dict[str, Any], name: str, *, where: str, option: str) -> Any:
    if name not in record:
        hint = did_you_mean(name, record) or f"; it has {', '.join(map(repr, record))}"
        raise InputError(f"{where}: no field {name!r}{hint} ({option} names it)")
    return record[name]
