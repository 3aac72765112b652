"""What all analyses have in common: how they are carried out, kept and continued."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sglm import __version__
from sglm.errors import InputError
from sglm.runtime.memory import available_bytes
from sglm.storage.durable import replace_text
from sglm.storage.picture import can_draw, save_picture
from sglm.storage.untrusted import given_path, read_bounded

_LARGEST_PART_BYTES = 1 << 28
_PARTS = "parts"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of an analysis that is computed at one go; a minute at most, so that little is lost.

    Attributes:
        name: of its file; unique within the analysis.
        compute: its values, as JSON can hold them; floats may be NaN.
        seconds: that it takes, about.
        of: all that its values depend on, as JSON can hold it: models, text, numbers. It is kept as
            long as this is so, for example when another run is added.
    """

    name: str
    compute: Callable[[], dict[str, Any]]
    seconds: float
    of: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A hash of all that its values depend on, sglm's version with it."""
        known = {"sglm": __version__, **self.of}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


class Finding(Protocol):
    """What an analysis found."""

    def as_json(self) -> dict[str, Any]:
        """All of it; NaN where a number is not defined."""
        ...

    def rows(self) -> list[list[str]]:
        """A table that fits 80 columns: its heading, then its rows."""
        ...

    def reading(self) -> str:
        """What that says, in a sentence."""
        ...

    def draw(self, figure: Any) -> None:
        """Its picture, on a matplotlib figure."""
        ...


class Analysis(Protocol):
    """A question, asked of some models."""

    @property
    def what(self) -> str:
        """Its name, as in `sglm analyze WHAT`."""
        ...

    def memory_bytes(self) -> float:
        """What it holds at most, about."""
        ...

    def parts(self) -> Sequence[Part]:
        """In the order in which they are computed; made anew, which reads the models' files."""
        ...

    def finding(self, values: Mapping[str, dict[str, Any]]) -> Finding:
        """What the values of all parts, by name, come to."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far an analysis is.

    Attributes:
        part: that is computed next; None when all are done.
        done, parts: how many of how many.
        seconds_left: about.
    """

    part: str | None
    done: int
    parts: int
    seconds_left: float


ReportsProgress = Callable[[Progress], object]


def carry_out(
    analysis: Analysis,
    out: str | os.PathLike[str] | None = None,
    *,
    parts: Sequence[Part] | None = None,
    report: ReportsProgress | None = None,
) -> Finding:
    """Computes the parts that are missing, and what they come to.

    Args:
        analysis: a question.
        out: its folder: gets `WHAT.json`, `WHAT.png` where matplotlib is installed, and the parts,
            so that the same call continues; None: nothing is written.
        parts: of the analysis, where the caller has them already; None: they are asked of it.
        report: called before every part and at the end.

    Raises:
        InputError: it needs more memory than there is, or `out` is no path or cannot be written to.
    """
    check_memory(analysis)
    target, folder = None, None
    if out is not None:
        target = given_path("a folder", out)
        _make_folder(target)  # now, and not when the first part is done
        folder = target / _PARTS / analysis.what
        folder.mkdir(parents=True, exist_ok=True)
    if parts is None:
        parts = analysis.parts()
    values = {part.name: _kept(folder, part) for part in parts}
    waiting = [part for part in parts if values[part.name] is None]
    for index, part in enumerate(waiting):
        if report is not None:
            report(
                Progress(
                    part=part.name,
                    done=len(parts) - len(waiting) + index,
                    parts=len(parts),
                    seconds_left=sum(each.seconds for each in waiting[index:]),
                )
            )
        value = json.loads(json.dumps(part.compute()))  # the same numbers, computed or kept
        values[part.name] = value
        if folder is not None:
            text = json.dumps({"key": part.key, "value": value})
            replace_text(folder / f"{part.name}.json", text + "\n")
    if report is not None:
        report(Progress(part=None, done=len(parts), parts=len(parts), seconds_left=0.0))
    finding = analysis.finding({name: value for name, value in values.items() if value is not None})
    if target is not None:
        _write(finding, target, analysis.what)
    return finding


def _make_folder(out: Path) -> None:
    """Before anything is computed that could then not be kept."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written to ({error.strerror}); give another --out DIR"
        ) from None


def check_memory(analysis: Analysis) -> None:
    """
    Raises:
        InputError: the analysis needs more memory than there is.
    """
    needed, there = analysis.memory_bytes(), available_bytes()
    if there is not None and needed > there:
        raise InputError(
            f"analyze {analysis.what} would need about {needed / 2**30:.1f} GiB of memory, and"
            f" {there / 2**30:.1f} are free; give fewer runs, or smaller models"
        )


def waiting_seconds(analysis: Analysis, parts: Sequence[Part], out: Path) -> float:
    """What `carry_out` would take, about, with these parts of the analysis and this folder."""
    folder = out / _PARTS / analysis.what
    return sum(part.seconds for part in parts if _kept(folder, part) is None)


def without_nan(value: Any) -> Any:
    """The same tree with None in place of numbers that are not finite: JSON knows none."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value


def _kept(folder: Path | None, part: Part) -> dict[str, Any] | None:
    """The values of a part that was computed before, of the same models with the same settings."""
    if folder is None:
        return None
    key = part.key
    try:
        # Not `read_json`, which takes no NaN.
        content = json.loads(read_bounded(folder / f"{part.name}.json", _LARGEST_PART_BYTES))
        value = content["value"] if content["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError):
        return None  # not there, or damaged: it is computed again
    return value if isinstance(value, dict) else None


def _write(finding: Finding, out: Path, what: str) -> None:
    text = json.dumps(without_nan(finding.as_json()), indent=1, allow_nan=False, ensure_ascii=False)
    replace_text(out / f"{what}.json", text + "\n")
    if can_draw():
        save_picture(out / f"{what}.png", finding.draw)
