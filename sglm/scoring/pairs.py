"""Minimal pairs: how often a model gives the acceptable sentence the higher probability.

BLiMP: Warstadt et al. 2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs for English", sec. 4.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sglm.errors import InputError, did_you_mean
from sglm.text.records import checked_text, read_json_lines

DEFAULT_GROUPS = ("UID", "field")


class Pair(NamedTuple):
    """A minimal pair: two sentences that differ only in what makes one of them acceptable.

    Attributes:
        good, bad: The acceptable sentence and the other one.
        groups: The groups of the pair, as `(field, value)` of its record.
        where: The file and line, for error messages.
    """

    good: str
    bad: str
    groups: tuple[tuple[str, str], ...] = ()
    where: str = ""


@dataclass(kw_only=True)
class Accuracy:
    """Counts of pairs.

    Attributes:
        n: The number of pairs.
        right: The number of pairs whose good sentence is more probable.
        ties: The number of pairs whose sentences are equally probable.
    """

    n: int = 0
    right: int = 0
    ties: int = 0

    @property
    def accuracy(self) -> float:
        """The share of right pairs, from 0 to 1; a tie counts as a half. One half is chance."""
        return (self.right + self.ties / 2) / self.n

    def count(self, good: float, bad: float) -> None:
        """Counts one more pair, given the log-probabilities of its sentences."""
        self.n += 1
        self.right += good > bad
        self.ties += good == bad

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `sglm pairs --json` prints for a group."""
        return {"n": self.n, "accuracy": self.accuracy, "ties": self.ties}


@dataclass(kw_only=True)
class PairResults:
    """The accuracies over all pairs and in each group, which is named by a field and its value."""

    overall: Accuracy = field(default_factory=Accuracy)
    by_field: dict[str, dict[str, Accuracy]] = field(default_factory=dict)

    def count(self, pair: Pair, good: float, bad: float) -> None:
        """Counts one more pair, given the log-probabilities of its sentences."""
        self.overall.count(good, bad)
        for name, value in pair.groups:
            self.by_field.setdefault(name, {}).setdefault(value, Accuracy()).count(good, bad)

    def groups(self) -> dict[str, Accuracy]:
        """Returns the groups by name, sorted within each field.

        The name is the value of the field; if an earlier field has the same value, `field=value`.
        """
        named: dict[str, Accuracy] = {}
        for name, values in self.by_field.items():
            for value in sorted(values):
                named[f"{name}={value}" if value in named else value] = values[value]
        return named

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `sglm pairs --json` prints."""
        groups = {name: accuracy.to_json() for name, accuracy in self.groups().items()}
        return {"groups": groups, **self.overall.to_json()}


def find_pair_files(sources: Sequence[Path]) -> list[Path]:
    """Returns the given files, and the .jsonl files in the given folders.

    Raises:
        InputError: A source does not exist, or a folder has no such file.
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
    """Reads the pairs in JSON-lines files, one by one.

    Args:
        files: The files, with one object in each line.
        good, bad: The fields that hold the sentences.
        groups: The fields by whose values pairs are grouped. None: those of `DEFAULT_GROUPS` that
            the record has.

    Raises:
        InputError: A record lacks one of these fields, or holds something other than text in it.
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
